/*
 * Performs a script of file calls by several processes and threads, one call at a time and in the script's order, and
 * reports what each call said. `perform` is made of the table of calls: for the tests it takes a call's arguments from
 * the script; in a listing every call is written out, and the file is a program of its own.
 *
 * Actor 10 * p + t is thread t of process p. Arguments of the program: place, process number, file of turns. Before,
 * `prepare` and a directory make there what every script finds; `absolute` leads to a third argument, `out` to a fourth.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <linux/falloc.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

enum { SLOTS = 8, PROCESSES = 2, BUFFER = 4 << 20, SCRIPT = 200, REPORT, TURNS };

/* What scripts keep: descriptors, streams of directories, mappings; each process its own. */
static int d[SLOTS] = {-1, -1, -1, -1, -1, -1, -1, -1};
static DIR *D[2];
static char *M[2];
static size_t M_size[2];
/* Whether this process, or the one it was forked from, has opened a stream. */
static int streamed;

/* Where this process works: absolute names in scripts begin with `R`, answers are told with HERE in its place. */
static char place[PATH_MAX];
static int process;
static _Atomic unsigned *turn;
static _Thread_local unsigned step;
static _Thread_local int thread;
static _Thread_local char *B;
static _Thread_local char detail[4096];
static _Thread_local volatile int survived;
static _Thread_local sigjmp_buf after_fault;
static char **arguments;

static void say(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void say(const char *format, ...)
{
    size_t used = strlen(detail);
    va_list list;
    va_start(list, format);
    vsnprintf(detail + used, sizeof detail - used, format, list);
    va_end(list);
}

/* Whether every actor goes on as it can, in no order with the others. */
static int unordered(void) { return turn[3]; }

/* --- what scripts use --- */

/* A directory of `…at`: slot, or the working directory. */
static int AT(int slot) { return slot < 0 ? AT_FDCWD : d[slot]; }

/* Puts a descriptor into a slot, and tells its number: the lowest that is free. A stream of a directory need not have one,
 * so after the first the numbers are nobody's promise any more. Without an order they depend on who is faster. */
static long keep(int slot, int fd)
{
    d[slot] = fd;
    if (fd >= 0 && !streamed && !unordered())
        say(" as %d", fd);
    return fd < 0 ? -1 : 0;
}

/* Frees a number in all slots that have it. The library may use it before the program does: for a stream of a directory,
 * which natively has a descriptor from the beginning. Once it is free, it may be the other thread's at once. */
static long release(int slot)
{
    int fd = d[slot];
    for (int i = 0; i < SLOTS; i++)
        d[i] = d[i] == fd ? -1 : d[i];
    return close(fd);
}

/* What lies at a directory's end each file system says for itself. */
static long seek(int fd, off_t offset, int whence)
{
    struct stat s;
    long result = lseek(fd, offset, whence);
    int old = errno;
    if (whence > SEEK_CUR && syscall(SYS_fstat, fd, &s) == 0 && S_ISDIR(s.st_mode))
        say(" in a directory");
    errno = old;
    return result;
}

/* Without O_NOFOLLOW, which says how a file was found: a backing descriptor was found in another way. */
static long flags(int all) { return all < 0 ? -1 : all & ~O_NOFOLLOW; }

/* Bytes to write, recognisable by their seed. */
static void *fill(int seed, size_t size)
{
    for (size_t i = 0; i < size && i < BUFFER; i++)
        B[i] = (char)(seed * 31 + i * 7 + (i >> 8));
    return B;
}

static void *clean(void) { return memset(B, 0, 4096); }

static void hash(const char *bytes, ssize_t size)
{
    uint64_t h = 0xcbf29ce484222325u;
    for (ssize_t i = 0; i < size; i++)
        h = (h ^ (unsigned char)bytes[i]) * 0x100000001b3u;
    say(" %016llx", (unsigned long long)h);
}

/* Tells the bytes that a call has put into B. */
static long got(ssize_t size)
{
    if (size >= 0)
        hash(B, size);
    return size;
}

/* Tells what lies at the beginning of a file, and closes it. */
static long contents(int fd)
{
    ssize_t size = pread(fd, B, 4096, 0);
    int old = errno;
    close(fd);
    errno = old;
    return got(size);
}

/* Tells text that a call has put into B, of that many bytes. */
static long text(ssize_t size)
{
    if (size < 0 || size > BUFFER)
        return size;
    if (size < BUFFER)
        B[size] = 0;
    size_t prefix = strlen(place);
    if (!strncmp(B, place, prefix) && (B[prefix] == '/' || !B[prefix])) {
        say(" HERE%.300s", B + prefix);
        return 0;
    }
    say(" %.300s", B);
    return size;
}

static long word(const char *string)
{
    return string ? (string == B ? 0 : (memmove(B, string, strlen(string) + 1), 0), text((ssize_t)strlen(B))) : -1;
}

/* Two pieces of B. */
static struct iovec *V(size_t first, size_t second)
{
    static _Thread_local struct iovec v[2];
    v[0] = (struct iovec){B, first};
    v[1] = (struct iovec){B + first, second};
    return v;
}

/* Times of a script are years ago; what is recent was set by the kernel. */
static struct timespec *T(long access, long modification)
{
    static _Thread_local struct timespec t[2];
    long seconds[] = {access, modification};
    for (int i = 0; i < 2; i++)
        t[i] = seconds[i] == -1   ? (struct timespec){0, UTIME_NOW}
               : seconds[i] == -2 ? (struct timespec){0, UTIME_OMIT}
                                  : (struct timespec){seconds[i], 123456789};
    return t;
}

static const char *age(long long seconds, long nanoseconds)
{
    static _Thread_local char texts[4][40];
    static _Thread_local int next;
    char *text = texts[next++ % 4];
    if (seconds > 1000000000)
        return "recent";
    sprintf(text, "%lld.%09ld", seconds, nanoseconds);
    return text;
}

static int is_here(dev_t device)
{
    struct stat here;
    int old = errno;
    int result = syscall(SYS_newfstatat, AT_FDCWD, place, &here, 0) == 0 && here.st_dev == device;
    errno = old;
    return result;
}

/* Tells attributes. Numbers of inodes are another matter: `same` compares them. */
static long attributes(int result, const struct stat *s)
{
    if (result == 0)
        say(" %o %u:%u links=%lu size=%lld rdev=%lx %s a=%s m=%s%s", s->st_mode, s->st_uid, s->st_gid,
            (unsigned long)s->st_nlink, (long long)s->st_size, (unsigned long)s->st_rdev,
            s->st_blocks ? "blocks" : "empty", age(s->st_atim.tv_sec, s->st_atim.tv_nsec),
            age(s->st_mtim.tv_sec, s->st_mtim.tv_nsec), is_here(s->st_dev) ? "" : " elsewhere");
    return result;
}

static long attributes_x(int result, const struct statx *s, unsigned mask)
{
    if (result == 0)
        say(" %o %u:%u links=%u size=%lld m=%s", s->stx_mode, mask & STATX_UID ? s->stx_uid : 0,
            mask & STATX_GID ? s->stx_gid : 0, mask & STATX_NLINK ? s->stx_nlink : 0,
            mask & STATX_SIZE ? (long long)s->stx_size : 0,
            mask & STATX_MTIME ? age(s->stx_mtime.tv_sec, s->stx_mtime.tv_nsec) : "");
    return result;
}

static long same(int fd, const char *name)
{
    struct stat a, b;
    if (fstat(fd, &a) || stat(name, &b))
        return -1;
    return a.st_dev == b.st_dev && a.st_ino == b.st_ino && a.st_size == b.st_size && a.st_mode == b.st_mode &&
           a.st_nlink == b.st_nlink && a.st_mtim.tv_nsec == b.st_mtim.tv_nsec &&
           a.st_mtim.tv_sec == b.st_mtim.tv_sec;
}

/* Tells the names of extended attributes, in order, without the system's own. */
static long names(ssize_t size)
{
    for (int round = 0; size > 0 && round < 8; round++)
        for (char *name = B; name < B + size; name += strlen(name) + 1) {
            char expected[] = "user._";
            expected[5] = "abcdxyzt"[round];
            if (!strcmp(name, expected))
                say(" %s", name);
        }
    return size < 0 ? -1 : 0;
}

static int by_name(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

/* Tells the entries that are left in a stream, sorted. */
static long entries(DIR *stream)
{
    if (!stream) {
        errno = EBADF;
        return -1;
    }
    char *list[4096];
    long count = 0;
    size_t used = 0;
    struct dirent *entry;
    errno = 0;
    while (count < 4096 && (entry = readdir(stream))) {
        list[count] = B + used;
        used += sprintf(B + used, "%s/%d", entry->d_name, entry->d_type) + 1;
        count++;
    }
    if (errno)
        return -1;
    qsort(list, count, sizeof *list, by_name);
    for (long i = 0; i < count; i++)
        say(" %s", list[i]);
    return count;
}

static long list(const char *name)
{
    DIR *stream = opendir(name);
    if (!stream)
        return -1;
    long count = entries(stream);
    return closedir(stream) ? -1 : count;
}

static long opened(DIR *stream)
{
    streamed |= stream != NULL;
    return stream ? 0 : -1;
}

static long some(DIR *stream, int count)
{
    int i = 0;
    errno = 0;
    while (stream && i < count && readdir(stream))
        i++;
    return errno ? -1 : i;
}

/* Whether a place in a directory leads to the same entry again. */
static long again(DIR *stream)
{
    if (!stream)
        return -2;
    char first[NAME_MAX + 1] = "";
    long position = telldir(stream);
    struct dirent *entry = readdir(stream);
    if (entry)
        strcpy(first, entry->d_name);
    seekdir(stream, position);
    entry = readdir(stream);
    return !strcmp(first, entry ? entry->d_name : "");
}

static long shut(DIR **stream)
{
    DIR *old = *stream;
    *stream = NULL;
    return old ? closedir(old) : -2;
}

static void fault(int signal)
{
    survived = signal;
    siglongjmp(after_fault, 1);
}

static long map(int slot, size_t size, int protection, int flags, int fd, off_t offset)
{
    if (M[slot])
        munmap(M[slot], M_size[slot]);
    char *mapped = mmap(NULL, size, protection, flags, fd, offset);
    M[slot] = mapped == MAP_FAILED ? NULL : mapped;
    M_size[slot] = size;
    return mapped == MAP_FAILED ? -1 : 0;
}

static long touch(int slot, size_t offset, size_t size, int seed)
{
    if (!M[slot] || offset + size > M_size[slot])
        return -2;
    fill(seed, size);
    survived = 0;
    if (!sigsetjmp(after_fault, 1)) {
        if (seed)
            memcpy(M[slot] + offset, B, size);
        else
            memcpy(B, M[slot] + offset, size);
    }
    if (survived) {
        say(" signal %d", survived);
        return -3;
    }
    return seed ? 0 : got(size);
}

static long sync_map(int slot, int flags) { return M[slot] ? msync(M[slot], M_size[slot], flags) : -2; }

static long unmap(int slot)
{
    if (!M[slot])
        return -2;
    char *old = M[slot];
    M[slot] = NULL;
    return munmap(old, M_size[slot]);
}

static long lock(int fd, int command, int type, off_t start, off_t length)
{
    struct flock l = {.l_type = (short)type, .l_whence = SEEK_SET, .l_start = start, .l_len = length};
    int result = fcntl(fd, command, &l);
    if (result == 0 && (command == F_GETLK || command == F_OFD_GETLK)) {
        say(" type %d", l.l_type);
        if (l.l_type != F_UNLCK)
            say(" %lld+%lld %s", (long long)l.l_start, (long long)l.l_len,
                l.l_pid == -1 ? "description" : l.l_pid == getpid() ? "mine" : "process");
    }
    return result;
}

static long copy(const char *from, const char *to)
{
    FILE *in = fopen(from, "re"), *out = in ? fopen(to, "w") : NULL;
    long total = -1;
    if (out) {
        total = (long)fread(B, 1, BUFFER, in);
        total = (long)fwrite(B, 1, (size_t)total, out);
        if (ferror(in) | fclose(out))
            total = -1;
    }
    int old = errno;
    if (in)
        fclose(in);
    errno = old;
    return total;
}

static long print(const char *name, const char *mode, int seed)
{
    FILE *file = fopen(name, mode);
    if (!file)
        return -1;
    int result = fprintf(file, "%d lines\n%d more\n", seed, seed);
    say(" at %ld", ftell(file));
    return fclose(file) ? -1 : result;
}

static long reopen(const char *first, const char *second, const char *mode)
{
    FILE *file = fopen(first, "a+");
    if (!file || fputs("first\n", file) < 0 || !(file = freopen(second, mode, file)))
        return -1;
    size_t size = fread(B, 1, 4096, file);
    rewind(file);
    fputs("second\n", file);
    fclose(file);
    return got((ssize_t)size);
}

static long lines(const char *name)
{
    FILE *file = fopen(name, "r");
    if (!file)
        return -1;
    long count = 0;
    while (fgets(B, 4096, file))
        count++;
    count = ferror(file) ? -1 : count;
    int old = errno;
    fclose(file);
    errno = old;
    return count;
}

static long temporary(char *template, int kind)
{
    int fd = kind == 0 ? mkstemp(template) : kind == 1 ? mkostemp(template, O_APPEND | O_CLOEXEC) : -1;
    if (kind == 2 ? !mkdtemp(template) : fd < 0)
        return -1;
    struct stat s;
    long result = attributes(stat(template, &s), &s);
    if (fd >= 0) {
        say(" %zd", write(fd, "temporary", 9));
        close(fd);
    }
    return result | (kind == 2 ? rmdir(template) : unlink(template));
}

/* A name that the call may change. */
static char *W(const char *name) { return strcpy(B + BUFFER - PATH_MAX * 2, name); }

/* The absolute form of a name. */
static char *R(const char *rest)
{
    static _Thread_local char name[2][PATH_MAX * 2];
    static _Thread_local int which;
    which = !which;
    snprintf(name[which], sizeof name[which], "%s%s", place, rest);
    return name[which];
}

/* A name of that many letters. */
static char *X(int letters)
{
    static _Thread_local char name[2][PATH_MAX];
    static _Thread_local int which;
    which = !which;
    memset(name[which], 'x', (size_t)letters);
    name[which][letters] = 0;
    return name[which];
}

/* A path of that many bytes to `a`. */
static char *P(int bytes)
{
    static _Thread_local char name[2][PATH_MAX * 2];
    static _Thread_local int which;
    which = !which;
    for (int i = 0; i < bytes - 1; i++)
        name[which][i] = i & 1 ? '/' : '.';
    name[which][bytes - 2] = '/';
    strcpy(name[which] + bytes - 1, "a");
    return name[which];
}

static int visits;
static int visit(const char *name, const struct stat *s, int type, struct FTW *ftw)
{
    (void)name, (void)s, (void)type, (void)ftw;
    visits += 1 + type * 100 + ftw->level * 10000;
    return 0;
}

static long walk(const char *name)
{
    visits = 0;
    return nftw(name, visit, 8, FTW_PHYS) ? -1 : visits;
}

static long fs(int result, const struct statvfs *s)
{
    if (result == 0)
        say(" %lu", s->f_namemax);
    return result;
}

static long limit(long value)
{
    say(" %ld", value);
    return value < 0 ? -1 : 0;
}

static int bind_to(const char *name)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(name) >= sizeof address.sun_path) {
        errno = ENAMETOOLONG;
        return -1;
    }
    strcpy(address.sun_path, name);
    int s = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int result = bind(s, (struct sockaddr *)&address, sizeof address);
    int old = errno;
    close(s);
    errno = old;
    return result;
}

static off_t *offset_at(off_t value)
{
    static _Thread_local off_t offset;
    offset = value;
    return value < 0 ? NULL : &offset;
}

/* Opens what a descriptor has open, by a name that says so, and tells what can be read there. More is not told, and nothing
 * kept: on the bypass that may be the source's file. */
static long reopened(const char *directory, int fd, int flags)
{
    char name[40];
    sprintf(name, "%s/%d", directory, fd);
    fd = open(name, flags | O_NONBLOCK | O_CLOEXEC);
    return fd < 0 ? -1 : contents(fd);
}

/* What a descriptor's own name leads to, without whose file that is. */
static long named(int fd)
{
    char name[40];
    struct stat s;
    sprintf(name, "/proc/self/fd/%d", fd);
    if (stat(name, &s))
        return -1;
    say(" %o %u:%u size=%lld", s.st_mode, s.st_uid, s.st_gid, (long long)s.st_size);
    return 0;
}

/* Sends a descriptor through a socket, and tells what can be read from the one that arrives. */
static long sent(int fd)
{
    int pair[2], arrived;
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))
        return -1;
    char byte = 'x', control[CMSG_SPACE(sizeof(int))] = "";
    struct iovec iov = {&byte, 1};
    struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    struct cmsghdr *c = CMSG_FIRSTHDR(&m);
    c->cmsg_level = SOL_SOCKET, c->cmsg_type = SCM_RIGHTS, c->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(c), &fd, sizeof(int));
    long result = sendmsg(pair[0], &m, 0);
    if (result == 1) {
        memset(control, 0, sizeof control);
        result = recvmsg(pair[1], &m, MSG_CMSG_CLOEXEC);
        memcpy(&arrived, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof(int));
    }
    int old = errno;
    close(pair[0]);
    close(pair[1]);
    errno = old;
    return result == 1 ? contents(arrived) : -1;
}

/* --- what scripts find --- */

static int prepare(const char *here, const char *out)
{
    static const char *const directories[] = {"", "/d", "/d/e", "/e"};
    static const struct { const char *name; int size; } files[] = {{"/a", 5}, {"/b", 10000}, {"/d/a", 0}, {"/d/e/x", 4096}};
    const struct { const char *target, *name; } links[] = {
        {"a", "/l"}, {"d", "/m"}, {"loop", "/loop"}, {"nothing", "/gone"}, {"l", "/l2"}, {"..", "/d/up"},
        {here, "/absolute"}, {out, "/out"},
    };
    const struct timespec long_ago[2] = {{500000, 0}, {500000, 0}};
    int failed = 0;
    umask(0);
    for (size_t i = 0; i < sizeof directories / sizeof *directories; i++)
        failed |= mkdir(R(directories[i]), 0777);
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        int fd = open(R(files[i].name), O_WRONLY | O_CREAT | O_EXCL, 0666);
        for (int at = 0; at < files[i].size; at++)
            B[at] = (char)('a' + at % 23);
        failed |= write(fd, B, (size_t)files[i].size) != files[i].size || futimens(fd, long_ago);
        close(fd);
    }
    failed |= link(R("/a"), R("/h"));
    for (size_t i = 0; i < sizeof links / sizeof *links; i++)
        failed |= symlink(links[i].target, R(links[i].name));
    return failed != 0;
}

/* --- turns --- */

static void act(unsigned first);
static void start_other(unsigned first);
static _Noreturn void end(void);

static void report(long result)
{
    char line[sizeof detail + 100];
    int error = errno, size;
    if (result == -1)
        size = snprintf(line, sizeof line, "%u -1 %s%s\n", step, strerrorname_np(error), detail);
    else
        size = snprintf(line, sizeof line, "%u %ld%s\n", step, result, detail);
    syscall(SYS_write, REPORT, line, size);
}

static void pass_to(unsigned next)
{
    if (unordered())
        return;
    atomic_store(turn, next);
    syscall(SYS_futex, turn, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

/* While a step waits, its thread may be ended by an exec of the other: nothing else needs care then. */
static void await(unsigned mine)
{
    unsigned now;
    if (unordered())
        return;
    while ((now = atomic_load(turn)) != mine)
        syscall(SYS_futex, turn, FUTEX_WAIT, now, NULL, NULL, 0);
    int last = (int)atomic_exchange(turn + 1, 0);
    if (last) {
        /* Who had the last turn is ending: its descriptors are closed once its pidfd says so. */
        int fd = (int)syscall(SYS_pidfd_open, last, 0);
        if (fd >= 0) {
            struct pollfd p = {fd, POLLIN, 0};
            while (syscall(SYS_poll, &p, 1, -1) != 1)
                ;
            syscall(SYS_close, fd);
        }
    }
}

static void forget_streams(void) { D[0] = D[1] = NULL; }

static long become(int number)
{
    pid_t child = fork();
    if (child == 0) {
        process = number;
        /* Parent and child may not both go on with a stream (POSIX, `fork`): the second child does, the first does not. */
        if (number % 2 == 0)
            forget_streams();
        start_other(step + 1);
        act(step + 1);
        end();
    }
    if (number % 2)
        forget_streams();
    return child < 0 ? -1 : 0;
}

/* What the program needs to go on after an exec travels in its arguments. */
static long renew(void)
{
    static char numbers[SLOTS + 2][16];
    char *list[SLOTS + 7] = {arguments[0], arguments[1], numbers[0], "-", numbers[1], streamed ? "1" : "0"};
    sprintf(numbers[0], "%d", process);
    sprintf(numbers[1], "%u", step + 1);
    for (int i = 0; i < SLOTS; i++) {
        sprintf(numbers[i + 2], "%d", d[i]);
        list[i + 6] = numbers[i + 2];
    }
    /* Its turn is over when the new program begins, because only then are descriptors closed. */
    execv(arguments[0], list);
    return -1;
}

static long die(int how)
{
    report(0);
    atomic_store(turn + 1, (unsigned)getpid());
    pass_to(step + 1);
    if (how)
        kill(getpid(), SIGKILL);
    _exit(0);
}

static int actor_of(unsigned i);
static unsigned length(void);
static long perform(unsigned i);

static void act(unsigned first)
{
    /* Aligned, as O_DIRECT wants it. */
    B = B ? B : aligned_alloc(4096, BUFFER);
    for (step = first; step < length(); step++) {
        if (actor_of(step) != 10 * process + thread)
            continue;
        await(step);
        detail[0] = 0;
        errno = 0;
        report(perform(step));
        pass_to(step + 1);
    }
}

static pthread_t other;

static void *act_as_other(void *first)
{
    thread = 1;
    act((unsigned)(uintptr_t)first);
    return NULL;
}

static void start_other(unsigned first)
{
    pthread_create(&other, NULL, act_as_other, (void *)(uintptr_t)first);
}

static _Noreturn void end(void)
{
    pthread_join(other, NULL);
    while (wait(NULL) > 0 || errno == EINTR)
        ;
    _exit(0);
}

static void load(void);

int main(int count, char **list)
{
    unsigned first = 0;
    arguments = list;
    if (count > 2 && !strcmp(list[1], "prepare")) {
        B = malloc(BUFFER);
        strcpy(place, list[2]);
        return prepare(count > 3 ? list[3] : place, count > 4 ? list[4] : "nowhere");
    }
    if (count < 4)
        return 2;
    strcpy(place, list[1]);
    process = atoi(list[2]);
    if (count > 4) {
        first = (unsigned)atoi(list[4]);
        streamed = atoi(list[5]);
        for (int i = 0; i < SLOTS; i++) {
            d[i] = atoi(list[6 + i]);
            if (syscall(SYS_fcntl, d[i], F_GETFD) < 0)
                d[i] = -1;
        }
    } else {
        int fd = open(list[3], O_RDWR);
        if (fd < 0 || dup2(0, SCRIPT) < 0 || dup2(1, REPORT) < 0 || dup2(fd, TURNS) < 0)
            return 3;
        close(fd);
        fd = open("/dev/null", O_RDWR);
        dup2(fd, 0);
        dup2(fd, 1);
        close(fd);
        umask(022);
        if (chdir(place))
            return 4;
    }
    turn = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, TURNS, 0);
    load();
    if (!first) {
        /* Nobody begins before all can: what is done first may keep others from starting. */
        unsigned ready = atomic_fetch_add(turn + 2, 1) + 1;
        syscall(SYS_futex, turn + 2, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
        for (; ready != PROCESSES; ready = atomic_load(turn + 2))
            syscall(SYS_futex, turn + 2, FUTEX_WAIT, ready, NULL, NULL, 0);
    }
    signal(SIGPIPE, SIG_IGN);
    signal(SIGBUS, fault);
    signal(SIGSEGV, fault);
    if (first) {
        step = first - 1;
        report(0);
        pass_to(first);
    }
    start_other(first);
    act(first);
    end();
}
