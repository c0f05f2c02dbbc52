/* Everything that can be done with an open file's descriptor; prints what each call answers. The output of a run on a mount is
 * compared with that of a native run. */
#define _GNU_SOURCE
#include <aio.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/sendfile.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <termios.h>
#include <unistd.h>

extern char **environ;

/* A name for each step, its result, and the errno if it failed. */
static void say(const char *what, long result) {
    printf("%s: %ld%s%s\n", what, result, result == -1 ? " " : "", result == -1 ? strerror(errno) : "");
    fflush(stdout);
}

/* The text that a descriptor reads next, without moving its offset. */
static void show(const char *what, int fd) {
    char text[64] = "";
    off_t at = lseek(fd, 0, SEEK_CUR);
    ssize_t len = pread(fd, text, sizeof text - 1, 0);
    printf("%s: offset %ld, %ld bytes \"%s\"\n", what, (long)at, (long)len, len > 0 ? text : "");
    fflush(stdout);
}

static int make(const char *path, const char *text) {
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0644);
    if (fd < 0) {
        perror(path);
        exit(1);
    }
    if (write(fd, text, strlen(text)) != (ssize_t)strlen(text)) {
        perror("write");
        exit(1);
    }
    return fd;
}

static void transfers(void) {
    char buffer[64];
    int fd = make("t", "0123456789");
    say("write at the end", write(fd, "ab", 2));
    say("seek back", lseek(fd, -4, SEEK_END));
    memset(buffer, 0, sizeof buffer);
    say("read", read(fd, buffer, sizeof buffer));
    puts(buffer);
    say("read at the end", read(fd, buffer, sizeof buffer));
    say("pread", pread(fd, buffer, 3, 2));
    say("pread beyond", pread(fd, buffer, 3, 1000));
    say("pread before", pread(fd, buffer, 3, -1));
    say("pwrite before", pwrite(fd, buffer, 3, -1));
    say("pwrite", pwrite(fd, "XYZ", 3, 1));
    say("pwrite leaves a hole", pwrite(fd, "!", 1, 20));
    struct iovec two[2] = {{buffer, 3}, {buffer + 10, 5}};
    lseek(fd, 0, SEEK_SET);
    say("readv", readv(fd, two, 2));
    say("preadv", preadv(fd, two, 2, 4));
    say("preadv2 at the own offset", preadv2(fd, two, 2, -1, 0));
    say("preadv2 elsewhere", preadv2(fd, two, 2, 3, 0));
    say("preadv2 with a flag", preadv2(fd, two, 2, 0, RWF_HIPRI));
    show("then", fd);
    close(fd);
    fd = make("t", "0123456789");
    struct iovec out[2] = {{"aaa", 3}, {"bb", 2}};
    say("writev", writev(fd, out, 2));
    say("pwritev", pwritev(fd, out, 2, 1));
    say("pwritev2", pwritev2(fd, out, 2, 12, 0));
    say("pwritev2 at the own offset", pwritev2(fd, out, 2, -1, 0));
    say("no buffers", readv(fd, two, 0));
    say("too many buffers", readv(fd, two, IOV_MAX + 1));
    say("fewer than none", readv(fd, two, -1));
    struct iovec many[100];
    for (int i = 0; i < 100; i++)
        many[i] = (struct iovec){"m", 1};
    say("many buffers", writev(fd, many, 100));
    struct iovec wrong[2] = {{buffer, 3}, {buffer, (size_t)-5}};
    say("a negative length", readv(fd, wrong, 2));
    say("an empty read", read(fd, buffer, 0));
    say("an empty write", write(fd, buffer, 0));
    show("then", fd);
    say("seek before the beginning", lseek(fd, -1, SEEK_SET));
    say("seek by an unknown way", lseek(fd, 0, 77));
    say("seek beyond the end", lseek(fd, 4096, SEEK_SET));
    say("seek data", lseek(fd, 0, SEEK_DATA));
    say("seek hole", lseek(fd, 0, SEEK_HOLE) > 0);
    say("seek data beyond", lseek(fd, 1 << 20, SEEK_DATA));
    close(fd);
}

static void modes(void) {
    char buffer[8];
    close(make("m", "0123456789"));
    int r = open("m", O_RDONLY), w = open("m", O_WRONLY), a = open("m", O_RDWR | O_APPEND);
    say("write to a file open for reading", write(r, "x", 1));
    say("pwrite to it", pwrite(r, "x", 1, 0));
    say("truncate it", ftruncate(r, 0));
    say("allocate there", fallocate(r, 0, 0, 10));
    say("read from a file open for writing", read(w, buffer, 1));
    say("read nothing from it", read(w, buffer, 0));
    say("read ahead of it", readahead(w, 0, 10));
    say("append", write(a, "one", 3));
    say("offset after appending", lseek(a, 0, SEEK_CUR));
    say("pwrite appends", pwrite(a, "two", 3, 0));
    show("then", a);
    printf("flags %o %o %o\n", fcntl(r, F_GETFL), fcntl(w, F_GETFL), fcntl(a, F_GETFL));
    say("no longer append", fcntl(a, F_SETFL, O_NONBLOCK));
    printf("flags %o\n", fcntl(a, F_GETFL));
    say("pwrite", pwrite(a, "zero", 4, 0));
    say("append again", fcntl(a, F_SETFL, O_APPEND));
    int d = dup(a);
    say("write by a duplicate", write(d, "three", 5));
    printf("flags %o\n", fcntl(d, F_GETFL));
    show("then", a);
    int excl = open("m", O_RDWR | O_CREAT | O_EXCL, 0600);
    say("create what exists", excl);
    int c = open("created", O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0444);
    say("close-on-exec", fcntl(c, F_GETFD));
    printf("flags %o\n", fcntl(c, F_GETFL));
    int n = open("m", O_RDONLY | O_NOFOLLOW), o = open("other", O_RDWR | O_CREAT | O_NOFOLLOW, 0600);
    int p = fcntl(o, F_DUPFD, 20);
    printf("flags %o %o %o\n", fcntl(n, F_GETFL), fcntl(o, F_GETFL), fcntl(p, F_GETFL));
    close(n), close(o), close(p);
    say("write to a file that nobody may write to", write(c, "x", 1));
    say("open it again", open("created", O_RDWR) >= 0 || errno == EACCES);
    close(r), close(w), close(a), close(d), close(c);
    unlink("created");
}

static void attributes(void) {
    struct stat one, other;
    struct statx x;
    int fd = make("s", "0123456789");
    say("fstat", fstat(fd, &one));
    say("stat", stat("s", &other));
    printf("same file %d, size %ld, mode %o, links %ld\n", one.st_dev == other.st_dev && one.st_ino == other.st_ino,
           (long)one.st_size, one.st_mode, (long)one.st_nlink);
    say("fstatat with an empty path", fstatat(fd, "", &other, AT_EMPTY_PATH));
    printf("same file %d, size %ld\n", one.st_dev == other.st_dev && one.st_ino == other.st_ino, (long)other.st_size);
    say("statx", statx(fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS, &x));
    printf("same file %d, size %ld, mode %o\n", x.stx_ino == one.st_ino, (long)x.stx_size, x.stx_mode);
    say("fchmod", fchmod(fd, 0640));
    say("fchown", fchown(fd, getuid(), getgid()));
    struct timespec times[2] = {{1000000000, 5}, {1000000001, 7}};
    say("futimens", futimens(fd, times));
    fstat(fd, &one);
    printf("mode %o, times %ld %ld %ld %ld\n", one.st_mode, one.st_atim.tv_sec, one.st_atim.tv_nsec, one.st_mtim.tv_sec,
           one.st_mtim.tv_nsec);
    struct timeval coarse[2] = {{1000000002, 0}, {1000000003, 9}};
    say("futimes", futimes(fd, coarse));
    say("utimensat without a path", utimensat(fd, NULL, NULL, 0));
    say("ftruncate", ftruncate(fd, 4));
    say("ftruncate to less than nothing", ftruncate(fd, -4));
    say("allocate", fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, 100));
    say("allocate nothing", fallocate(fd, 0, 0, 0));
    say("allocate in an unknown way", fallocate(fd, 0x4000, 0, 10));
    printf("posix_fallocate %d %d\n", posix_fallocate(fd, 0, 8), posix_fallocate(fd, 0, -1));
    printf("posix_fadvise %d %d\n", posix_fadvise(fd, 0, 0, POSIX_FADV_SEQUENTIAL), posix_fadvise(fd, 0, 0, 99));
    say("readahead", readahead(fd, 0, 100));
    say("sync_file_range", sync_file_range(fd, 0, 0, SYNC_FILE_RANGE_WRITE));
    say("sync_file_range in an unknown way", sync_file_range(fd, 0, 0, 64));
    say("fsync", fsync(fd));
    say("fdatasync", fdatasync(fd));
    fstat(fd, &one);
    printf("size %ld\n", (long)one.st_size);
    char value[64];
    say("set an attribute", fsetxattr(fd, "user.colour", "blue", 4, 0));
    say("set it once more", fsetxattr(fd, "user.colour", "red", 3, XATTR_CREATE));
    say("get it", fgetxattr(fd, "user.colour", value, sizeof value));
    say("get its length", fgetxattr(fd, "user.colour", NULL, 0));
    say("get it into too little", fgetxattr(fd, "user.colour", value, 2));
    say("get what is not there", fgetxattr(fd, "user.none", value, sizeof value));
    say("list", flistxattr(fd, value, sizeof value) > 0);
    say("remove it", fremovexattr(fd, "user.colour"));
    say("remove it again", fremovexattr(fd, "user.colour"));
    times[0].tv_nsec = -3;
    say("wrong times", futimens(fd, times));
    say("chown by an empty path", fchownat(fd, "", getuid(), getgid(), AT_EMPTY_PATH));
    struct statfs fs;
    say("fstatfs", fstatfs(fd, &fs));
    say("fpathconf", fpathconf(fd, _PC_NAME_MAX));
    close(fd);
}

static void not_for_files(void) {
    struct termios terminal;
    struct stat attributes;
    int fd = make("n", "0123456789"), count = -1;
    lseek(fd, 4, SEEK_SET);
    say("isatty", isatty(fd));
    say("tcgetattr", tcgetattr(fd, &terminal));
    say("FIONREAD", ioctl(fd, FIONREAD, &count));
    printf("%d\n", count);
    show("then", fd);
    close(fd);
    fd = make("n", "0123456789");
    say("as a directory", fstatat(fd, "x", &attributes, 0));
    say("open below it", openat(fd, "x", O_RDONLY));
    say("enter it", fchdir(fd));
    close(fd);
    fd = make("n", "0123456789");
    struct pollfd ready = {fd, POLLIN | POLLOUT, 0};
    say("poll", poll(&ready, 1, 0));
    printf("%x\n", ready.revents & (POLLIN | POLLOUT | POLLNVAL));
    close(fd);
    fd = make("n", "0123456789");
    fd_set reads;
    FD_ZERO(&reads);
    FD_SET(fd, &reads);
    struct timeval now = {0, 0};
    say("select", select(fd + 1, &reads, NULL, NULL, &now));
    close(fd);
    say("read what is closed", read(fd, &attributes, 1));
    say("close it again", close(fd));
    say("read no descriptor", read(-1, &attributes, 1));
}

/* Each call finds a descriptor that nothing has been done with. */
#define NEITHER(call)                                                                                                  \
    do {                                                                                                               \
        int fd = make("n", "0123456789");                                                                              \
        say(#call, (long)(call));                                                                                      \
        close(fd);                                                                                                     \
    } while (0)

static void neither(void) {
    char bytes[64] = "", *none = NULL;
    struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = "socket"};
    struct sockaddr *to = (struct sockaddr *)&address;
    socklen_t len = sizeof address;
    struct iovec part = {bytes, 4};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    struct mmsghdr messages = {message, 0};
    struct termios terminal = {0};
    struct itimerspec times = {0};
    struct epoll_event event = {0};
    sigset_t signals;
    int one = 1, epoll = epoll_create1(0);
    int pid = getpid() > 0;
    uint64_t count = 1;
    off_t at = 0;
    sigemptyset(&signals);
    NEITHER(bind(fd, to, len));
    NEITHER(bind(fd, to, 10000));
    NEITHER(connect(fd, to, len));
    NEITHER(connect(fd, (void *)8, len));
    NEITHER(listen(fd, 5));
    NEITHER(accept(fd, NULL, NULL));
    NEITHER(accept4(fd, NULL, NULL, -1));
    NEITHER(shutdown(fd, SHUT_RD));
    NEITHER(send(fd, bytes, 4, 0));
    NEITHER(sendto(fd, bytes, 4, 0, to, len));
    NEITHER(sendmsg(fd, &message, 0));
    NEITHER(sendmmsg(fd, &messages, 1, 0));
    NEITHER(recv(fd, bytes, 4, 0));
    NEITHER(recvfrom(fd, bytes, 4, 0, to, &len));
    NEITHER(recvmsg(fd, &message, 0));
    NEITHER(recvmmsg(fd, &messages, 1, 0, NULL));
    NEITHER(getsockname(fd, to, &len));
    NEITHER(getpeername(fd, to, &len));
    NEITHER(getsockopt(fd, SOL_SOCKET, SO_TYPE, &one, &len));
    NEITHER(setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one));
    NEITHER(sockatmark(fd));
    NEITHER(isfdtype(fd, S_IFSOCK));
    NEITHER(ttyname(fd) == none ? -1 : 0);
    NEITHER(ptsname(fd) == none ? -1 : 0);
    NEITHER(ttyname_r(fd, bytes, sizeof bytes));
    NEITHER(ptsname_r(fd, bytes, sizeof bytes));
    NEITHER(grantpt(fd));
    NEITHER(unlockpt(fd));
    NEITHER(tcsetattr(fd, TCSANOW, &terminal));
    NEITHER(tcsendbreak(fd, 0));
    NEITHER(tcdrain(fd));
    NEITHER(tcflush(fd, TCIFLUSH));
    NEITHER(tcflow(fd, TCOON));
    NEITHER(tcgetpgrp(fd));
    NEITHER(tcsetpgrp(fd, pid));
    NEITHER(tcgetsid(fd));
    NEITHER(epoll_wait(fd, &event, 1, 0));
    NEITHER(epoll_pwait(fd, &event, 1, 0, &signals));
    NEITHER(epoll_ctl(fd, EPOLL_CTL_ADD, epoll, &event));
    NEITHER(signalfd(fd, &signals, 0));
    NEITHER(timerfd_settime(fd, 0, &times, NULL));
    NEITHER(timerfd_gettime(fd, &times));
    NEITHER(eventfd_write(fd, count));
    NEITHER(eventfd_read(fd, &count) == 0);
    NEITHER(inotify_add_watch(fd, "n", IN_OPEN));
    NEITHER(inotify_rm_watch(fd, 1));
    NEITHER(getdirentries(fd, bytes, sizeof bytes, &at));
    NEITHER(fdopendir(fd) == NULL ? -1 : 0);
    NEITHER(aio_cancel(fd, NULL));
    close(epoll);
}

static void duplicates(void) {
    char buffer[8] = "";
    int fd = make("d", "0123456789");
    lseek(fd, 2, SEEK_SET);
    int d = dup(fd), e = fcntl(fd, F_DUPFD, 50), f = fcntl(fd, F_DUPFD_CLOEXEC, 60);
    printf("%d %d %d %d\n", d - fd, e, f, fcntl(f, F_GETFD));
    say("dup2", dup2(fd, 70));
    say("dup3", dup3(fd, 71, O_CLOEXEC));
    say("dup2 onto itself", dup2(fd, fd) == fd);
    say("dup3 onto itself", dup3(fd, fd, 0));
    say("read", read(d, buffer, 1));
    say("read", read(e, buffer, 1));
    say("read", read(70, buffer, 1));
    show("shared offset", f);
    close(fd), close(d);
    show("others go on", e);
    int other = make("d2", "other");
    say("dup2 over a duplicate", dup2(other, 70));
    show("then", 70);
    show("and", 71);
    say("lock, by the kernel", flock(e, LOCK_EX | LOCK_NB));
    show("others share the offset still", 71);
    say("read", read(71, buffer, 3));
    show("others share the offset still", e);
    int low = open("d", O_RDONLY);
    say("the lowest number", low == fd);
    close(low), close(e), close(f), close(70), close(71), close(other);
    fd = make("d", "0123456789");
    dup2(fd, 80), dup2(fd, 81);
    say("close_range", close_range(80, 81, 0));
    say("closed", lseek(80, 0, SEEK_CUR));
    show("not closed", fd);
    say("mark a range", close_range(fd, fd, CLOSE_RANGE_CLOEXEC));
    say("marked", fcntl(fd, F_GETFD));
    say("unmark", fcntl(fd, F_SETFD, 0));
    say("unmarked", fcntl(fd, F_GETFD));
    for (int number = 3; number < 100; number++)
        close(number);
    say("all closed", lseek(fd, 0, SEEK_CUR));
}

/* A descriptor that was opened by the kernel, whatever is preloaded: by a system call without libc. */
static int opened_without_libc(const char *path) {
    long result;
#if defined __x86_64__
    __asm__ volatile("syscall" : "=a"(result) : "0"(SYS_open), "D"(path), "S"(O_RDWR), "d"(0) : "rcx", "r11", "memory");
#elif defined __aarch64__
    register long number __asm__("x8") = SYS_openat, directory __asm__("x0") = AT_FDCWD;
    register const char *name __asm__("x1") = path;
    register long flags __asm__("x2") = O_RDWR, mode __asm__("x3") = 0;
    __asm__ volatile("svc 0" : "+r"(directory) : "r"(number), "r"(name), "r"(flags), "r"(mode) : "memory");
    result = directory;
#endif
    errno = result < 0 ? -result : 0;
    return result < 0 ? -1 : result;
}

static void copies(void) {
    int one = make("c", "0123456789"), other = make("c2", ""), same;
    close(other);
    other = opened_without_libc("c2");
    same = opened_without_libc("c");
    off_t from = 2, to = 5;
    /* So that what is copied has come to stay wherever it is kept. */
    struct flock whole = {.l_type = F_RDLCK};
    say("lock", fcntl(one, F_SETLK, &whole));
    say("there", copy_file_range(one, NULL, other, NULL, 4, 0));
    show("source", one), show("target", other);
    say("on", copy_file_range(one, NULL, other, NULL, 100, 0));
    show("source", one), show("target", other);
    say("at the end", copy_file_range(one, NULL, other, NULL, 1, 0));
    say("to offsets", copy_file_range(one, &from, other, &to, 3, 0));
    printf("%ld %ld\n", (long)from, (long)to);
    show("source", one), show("target", other);
    lseek(other, 0, SEEK_SET), from = 8;
    say("back", copy_file_range(other, NULL, one, &from, 6, 0));
    printf("%ld\n", (long)from);
    show("source", other), show("target", one);
    say("by number", syscall(SYS_copy_file_range, other, NULL, one, NULL, 2, 0));
    show("source", other), show("target", one);
    from = 0, to = 3;
    say("onto itself", copy_file_range(one, &from, same, &to, 4, 0));
    say("beside itself", copy_file_range(one, &from, same, &to, 3, 0));
    printf("%ld %ld\n", (long)from, (long)to);
    show("itself", same);
    from = -1;
    say("before the beginning", copy_file_range(one, &from, other, NULL, 1, 0));
    from = INT64_MAX - 1;
    say("beyond all", copy_file_range(one, &from, other, NULL, 8, 0));
    say("nothing", copy_file_range(one, NULL, other, NULL, 0, 0));
    say("flags", copy_file_range(one, NULL, other, NULL, 1, 1));
    say("nowhere", copy_file_range(one, (off_t *)8, other, NULL, 1, 0));
    fcntl(other, F_SETFL, O_APPEND);
    say("to the end", copy_file_range(one, NULL, other, NULL, 1, 0));
    close(other);
    other = open("c2", O_RDONLY);
    say("to what is read", copy_file_range(same, NULL, other, NULL, 1, 0));
    int size = ftruncate(one, 1 << 20);
    from = to = 0, close(other), close(same);
    other = opened_without_libc("c2");
    say("much", size + copy_file_range(one, &from, other, &to, SIZE_MAX, 0));
    printf("%ld %ld\n", (long)from, (long)to);
    close(one), close(other);
}

static void by_the_kernel(void) {
    char buffer[32] = "";
    int fd = make("k", "0123456789"), target = make("k2", "");
    lseek(fd, 3, SEEK_SET);
    char *map = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    say("mmap", map == MAP_FAILED ? -1 : 0);
    printf("%.10s\n", map);
    show("offset kept", fd);
    map[0] = '#';
    show("written through the map", fd);
    munmap(map, 4096);
    close(fd);
    fd = make("k", "0123456789");
    lseek(fd, 3, SEEK_SET);
    say("sendfile", sendfile(target, fd, NULL, 4));
    show("source", fd);
    show("target", target);
    close(fd), close(target);
    fd = make("k", "0123456789"), target = make("k2", "");
    lseek(fd, 3, SEEK_SET);
    say("copy_file_range", copy_file_range(fd, NULL, target, NULL, 4, 0));
    show("source", fd);
    show("target", target);
    close(fd), close(target);
    fd = make("k", "0123456789");
    lseek(fd, 3, SEEK_SET);
    int ends[2];
    if (pipe(ends) != 0)
        exit(1);
    say("splice", splice(fd, NULL, ends[1], NULL, 4, 0));
    say("from the pipe", read(ends[0], buffer, sizeof buffer));
    show("source", fd);
    close(fd);
    struct flock whole = {.l_type = F_WRLCK};
    fd = make("k", "0123456789");
    lseek(fd, 3, SEEK_SET);
    say("fcntl lock", fcntl(fd, F_SETLK, &whole));
    show("then", fd);
    close(fd);
    fd = make("k", "0123456789");
    whole.l_pid = 0;
    say("open file description lock", fcntl(fd, F_OFD_SETLK, &whole));
    close(fd);
    fd = make("k", "0123456789");
    say("lockf", lockf(fd, F_TLOCK, 0));
    close(fd);
    fd = make("k", "0123456789");
    lseek(fd, 3, SEEK_SET);
    say("dprintf", dprintf(fd, "<%d %s %.1f>", 7, "x", 2.5));
    show("then", fd);
    close(fd);
    fd = make("k", "0123456789");
    lseek(fd, 3, SEEK_SET);
    FILE *stream = fdopen(fd, "r+");
    say("fdopen", stream ? 0 : -1);
    if (stream) {
        printf("%c\n", fgetc(stream));
        fseek(stream, 0, SEEK_END);
        fputs("end", stream);
        fclose(stream);
    }
    fd = open("k", O_RDWR);
    show("then", fd);
    lseek(fd, 5, SEEK_SET);
    char name[64];
    snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
    int again = open(name, O_RDONLY);
    say("open by /proc", again >= 0);
    show("by /proc", again);
    close(again);
    show("itself", fd);
    close(fd);
    fd = make("k", "0123456789");
    snprintf(name, sizeof name, "/dev/fd/%d", fd);
    again = open(name, O_RDONLY);
    say("open by /dev", again >= 0);
    show("by /dev", again);
    close(again), close(fd);
    fd = make("k", "0123456789");
    struct aiocb block = {.aio_fildes = fd, .aio_buf = buffer, .aio_nbytes = 4, .aio_offset = 2};
    say("aio_read", aio_read(&block));
    const struct aiocb *blocks[1] = {&block};
    aio_suspend(blocks, 1, NULL);
    say("aio_return", aio_return(&block));
    close(fd);
    fd = make("k", "0123456789");
    say("syscall read at the end", syscall(SYS_read, fd, buffer, 3));
    say("syscall lseek", syscall(SYS_lseek, fd, 1, SEEK_SET));
    say("syscall read", syscall(SYS_read, fd, buffer, 3));
    say("syscall flock", syscall(SYS_flock, fd, LOCK_EX));
    show("then", fd);
    say("syscall close", syscall(SYS_close, fd));
    say("closed", lseek(fd, 0, SEEK_CUR));
    close(0);
    fd = open("k", O_RDONLY);
    say("standard input", fd);
    char line[16] = "";
    say("scanf", scanf("%5s", line));
    puts(line);
    close(ends[0]), close(ends[1]);
}

/* What another process finds locked. */
static void probe(const char *what) {
    int status;
    fflush(stdout);
    if (fork() == 0) {
        struct flock lock = {.l_type = F_WRLCK};
        _exit(fcntl(open("l", O_RDWR), F_GETLK, &lock) ? 99 : lock.l_type);
    }
    wait(&status);
    say(what, WEXITSTATUS(status) == F_UNLCK ? 0 : WEXITSTATUS(status) == F_WRLCK ? 1 : 2);
}

/* Descriptors of a file that the process has locked, each mapped: none is closed before the program closes one. */
static void locked(void) {
    struct flock lock = {.l_type = F_WRLCK};
    int first = make("l", "0123456789"), last = -1, mapped = 0;
    say("lock", fcntl(first, F_SETLK, &lock));
    for (int turn = 0; turn < 150; turn++) {
        last = open("l", O_RDONLY);
        mapped += mmap(NULL, 1, PROT_READ, MAP_SHARED, last, 0) != MAP_FAILED;
    }
    say("mapped", mapped);
    probe("locked");
    say("lock again", fcntl(first, F_SETLK, &lock));
    say("close one", close(last));
    probe("still locked");
    close(first);
}

static void children(void) {
    int status;
    int fd = make("c", "0123456789");
    lseek(fd, 3, SEEK_SET);
    fflush(stdout);
    if (fork() == 0) {
        lseek(fd, 2, SEEK_CUR);
        _exit(write(fd, "ch", 2) != 2);
    }
    wait(&status);
    say("a child's status", WEXITSTATUS(status));
    show("shared with a child", fd);
    close(fd);
    fd = make("c", "0123456789");
    lseek(fd, 3, SEEK_SET);
    if (vfork() == 0) {
        if (write(fd, "vf", 2) != 2)
            _exit(1);
        _exit(0);
    }
    wait(&status);
    say("a vfork child's status", WEXITSTATUS(status));
    show("shared with it", fd);
    close(fd);
    fd = make("c", "0123456789");
    lseek(fd, 3, SEEK_SET);
    char command[100];
    snprintf(command, sizeof command, "echo sys >&%d", fd);
    say("system", system(command));
    show("shared with it", fd);
    close(fd);
    fd = make("c", "0123456789");
    lseek(fd, 4, SEEK_SET);
    snprintf(command, sizeof command, "cat <&%d", fd);
    FILE *pipe = popen(command, "r");
    char text[32] = "";
    say("popen", pipe && fgets(text, sizeof text, pipe) ? 0 : -1);
    puts(text);
    pclose(pipe);
    show("shared with it", fd);
    close(fd);
    fd = make("c", "0123456789");
    lseek(fd, 4, SEEK_SET);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, fd, 1);
    char *arguments[] = {"echo", "spawned", NULL};
    pid_t child;
    fcntl(fd, F_SETFD, FD_CLOEXEC);
    say("spawn", posix_spawnp(&child, "echo", &actions, NULL, arguments, environ));
    waitpid(child, &status, 0);
    show("shared with it", fd);
    close(fd);
    fd = make("c", "0123456789");
    int kept = make("c2", "abcdefghij");
    fcntl(fd, F_SETFD, FD_CLOEXEC);
    lseek(fd, 4, SEEK_SET), lseek(kept, 4, SEEK_SET);
    char *none[] = {"none", NULL};
    say("a program that is not there", execv("/nonexistent/none", none));
    show("goes on", fd);
    show("goes on", kept);
    if (fork() == 0) {
        snprintf(command, sizeof command, "cat <&%d; echo exec >&%d", kept, kept);
        execlp("sh", "sh", "-c", command, NULL);
        _exit(9);
    }
    wait(&status);
    say("exec", WEXITSTATUS(status));
    show("shared with it", kept);
    close(fd), close(kept);
    fd = make("c", "0123456789");
    lseek(fd, 4, SEEK_SET);
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) != 0)
        exit(1);
    fflush(stdout);
    pid_t receiver = fork();
    char control[CMSG_SPACE(sizeof(int))] = "";
    char byte = 'x';
    struct iovec one = {&byte, 1};
    struct msghdr message = {.msg_iov = &one, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    if (receiver == 0) {
        if (recvmsg(pair[1], &message, 0) != 1)
            _exit(1);
        int got;
        memcpy(&got, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof got);
        _exit(write(got, "received", 8) != 8);
    }
    close(fd);
    fd = make("c", "0123456789");
    lseek(fd, 4, SEEK_SET);
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET, header->cmsg_type = SCM_RIGHTS, header->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(header), &fd, sizeof fd);
    say("send it", sendmsg(pair[0], &message, 0));
    waitpid(receiver, &status, 0);
    say("receiver", WEXITSTATUS(status));
    show("shared with the receiver", fd);
    close(fd), close(pair[0]), close(pair[1]);
}

static void streams(void) {
    char line[64];
    close(make("st", "first\nsecond\n"));
    const char *modes[] = {"r", "r+", "a", "a+", "re", "w+", "wx", "rx"};
    for (int turn = 0; turn < 16; turn++) {
        FILE *stream = fopen("st", modes[turn / 2]);
        printf("%s: %s\n", modes[turn / 2], stream ? "opened" : strerror(errno));
        if (!stream)
            continue;
        printf("at %ld, flags %o, close-on-exec %d\n", ftell(stream), fcntl(fileno(stream), F_GETFL),
               fcntl(fileno(stream), F_GETFD));
        say("read", fgets(line, sizeof line, stream) ? (long)strlen(line) : 0);
        fseek(stream, 0, SEEK_CUR);
        say("write", fputs("written\n", stream) < 0 ? 1 : 0);
        say("close", fclose(stream));
    }
    FILE *none = fopen("st/x", "r");
    say("below a file", none ? 0 : -1);
    none = fopen("nothing", "r");
    say("nothing", none ? 0 : -1);
    FILE *made = fopen("made", "wx");
    say("made", made && fputs("new", made) >= 0 ? fclose(made) : -1);
}

static void unlinked(void) {
    struct stat attributes;
    int fd = make("u", "0123456789");
    lseek(fd, 4, SEEK_SET);
    say("unlink", unlink("u"));
    say("write", write(fd, "ab", 2));
    show("still there", fd);
    fstat(fd, &attributes);
    printf("%ld links, %ld bytes\n", (long)attributes.st_nlink, (long)attributes.st_size);
    char *map = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0);
    say("mmap", map == MAP_FAILED ? -1 : 0);
    printf("%.10s\n", map);
    show("still there", fd);
    say("write", write(fd, "cd", 2));
    show("still there", fd);
    close(fd);
    fd = make("u", "0123456789");
    say("rename", rename("u", "v"));
    say("write", write(fd, "ab", 2));
    say("lock", flock(fd, LOCK_SH));
    show("still there", fd);
    close(fd);
    unlink("v");
}

static void bad_memory(void) {
    int fd = make("b", "0123456789");
    char *none = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    mprotect(none + 4096, 4096, PROT_NONE);
    char *constant = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    lseek(fd, 0, SEEK_SET);
    say("read to null", read(fd, NULL, 5));
    say("read to nowhere", read(fd, (void *)8, 5));
    say("read to a page without access", read(fd, none + 4096, 5));
    say("read to a constant", read(fd, constant, 5));
    say("offset", lseek(fd, 0, SEEK_CUR));
    say("pread to nowhere", pread(fd, none + 4096, 5, 2));
    say("write from nowhere", write(fd, none + 4096, 5));
    say("write from null", write(fd, NULL, 5));
    say("readv to nowhere", readv(fd, (void *)8, 1));
    struct iovec half[2] = {{none, 3}, {none + 4096, 3}};
    say("pwritev from half nowhere", pwritev(fd, half + 1, 1, 0));
    say("offset", lseek(fd, 0, SEEK_CUR));
    say("fstat to nowhere", fstat(fd, (void *)8));
    say("fgetxattr to nowhere", fsetxattr(fd, "user.a", "b", 1, 0) | fgetxattr(fd, "user.a", (void *)8, 5));
    show("then", fd);
    close(fd);
}

static void limits(void) {
    struct rlimit limit, before;
    int fd = make("l", "0123456789");
    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &before);
    limit = before;
    limit.rlim_cur = 12;
    setrlimit(RLIMIT_FSIZE, &limit);
    say("write up to the limit", write(fd, "abcdef", 6));
    say("write beyond the limit", write(fd, "abcdef", 6));
    say("truncate beyond the limit", ftruncate(fd, 100));
    setrlimit(RLIMIT_FSIZE, &before);
    show("then", fd);
    close(fd);
    getrlimit(RLIMIT_NOFILE, &before);
    limit = before;
    limit.rlim_cur = 40;
    fd = make("l", "0123456789");
    setrlimit(RLIMIT_NOFILE, &limit);
    int last = fd, next;
    while ((next = open("l", O_RDONLY)) >= 0)
        last = next;
    say("no more numbers", next);
    say("the last number", last);
    say("create", open("not-created", O_RDWR | O_CREAT, 0600));
    say("not created", access("not-created", F_OK));
    say("dup", dup(fd));
    show("goes on", fd);
    show("goes on", last);
    close(last);
    say("one more", open("l", O_RDONLY) == last);
    for (int number = fd + 1; number < 40; number++)
        close(number);
    setrlimit(RLIMIT_NOFILE, &before);
    close(fd);
}

int main(int count, char **arguments) {
    struct {
        const char *name;
        void (*run)(void);
    } parts[] = {{"transfers", transfers},   {"modes", modes},         {"attributes", attributes},
                 {"not_for_files", not_for_files}, {"neither", neither}, {"streams", streams}, {"duplicates", duplicates}, {"by_the_kernel", by_the_kernel}, {"copies", copies},
                 {"children", children},     {"unlinked", unlinked},   {"bad_memory", bad_memory},
                 {"limits", limits},         {"locked", locked}};
    for (size_t part = 0; part < sizeof parts / sizeof *parts; part++)
        if (count < 2 || strcmp(arguments[1], parts[part].name) == 0)
            parts[part].run();
    return 0;
}
