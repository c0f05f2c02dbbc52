/* What a process may do after it has changed its ids, its capabilities, its mask or its surroundings. To be run by root in a directory with one
   file, and one directory, for each of some users and modes. */
#include "work.h"
#include <grp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/fsuid.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <dirent.h>
#include <linux/seccomp.h>

static int attempt(int result) { return result < 0 ? errno : 0; }

static int opening(const char *path, int flags) {
    int fd = open(path, flags, 0666), error = errno;
    if (fd >= 0) close(fd);
    return fd < 0 ? error : 0;
}

/* A line with the errno of each call. */
static void try_all(const char *when) {
    static const char *owners[] = {"root", "owner", "group"};
    struct stat seen;
    char path[100];
    printf("%s:", when);
    for (int i = 0; i < 3; i++) {
        snprintf(path, sizeof path, "%s/file", owners[i]);
        printf(" %d", opening(path, O_RDONLY));
        printf(" %d", opening(path, O_WRONLY));
        printf(" %d", attempt(access(path, W_OK)));
        printf(" %d", attempt(stat(path, &seen)));
        snprintf(path, sizeof path, "%s-file", owners[i]);
        printf(" %d", opening(path, O_RDWR));
        printf(" %d", attempt(chmod(path, 0640)));
        snprintf(path, sizeof path, "%s/new", owners[i]);
        int made = opening(path, O_CREAT | O_EXCL | O_WRONLY);
        printf(" %d", made);
        if (!made && !stat(path, &seen)) printf("(%d.%d)", seen.st_uid, seen.st_gid);
        printf(" %d;", attempt(unlink(path)));
    }
    printf("\n");
    fflush(stdout);
}

static void in_child(void (*body)(void)) {
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        body();
        fflush(stdout);
        _exit(0);
    }
    int status;
    waitpid(pid, &status, 0);
    if (status) printf("ended with %x\n", status);
}

static void *try_in_thread(void *when) {
    try_all(when);
    return NULL;
}

static void by_setuid(void) {
    try_all("root");
    setgid(1001);
    try_all("setgid");
    setgroups(0, NULL);
    try_all("setgroups");
    setuid(1001);
    try_all("setuid");
    printf("back: %d\n", attempt(setuid(0)));
    try_all("still");
    pthread_t thread;
    pthread_create(&thread, NULL, try_in_thread, "thread");
    pthread_join(thread, NULL);
}

static void by_seteuid(void) {
    setgroups(1, (gid_t[]){2000});
    setegid(1002);
    seteuid(1002);
    try_all("seteuid");
    seteuid(0);
    try_all("back");
    seteuid(1001);
    setegid(0);
    try_all("other");
}

static void by_setresuid(void) {
    setresgid(1001, 1001, 0);
    setresuid(1001, 1001, 0);
    try_all("setresuid");
    setresuid(0, 0, 0);
    try_all("back");
    setreuid(1001, 0);
    try_all("real id only");
    setreuid(0, 1001);
    try_all("effective id only");
}

static void by_initgroups(void) {
    initgroups("nobody", 2000);
    setresgid(65534, 65534, 65534);
    setresuid(65534, 65534, 65534);
    try_all("initgroups");
}

static void by_setfsuid(void) {
    setfsgid(1001);
    setfsuid(1001);
    try_all("setfsuid");
    setfsuid(0);
    setfsgid(0);
    try_all("back");
}

static void drop_capabilities(int number) {
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2] = {{0}};
    if (number < 0) capset(&header, data);
    else {
        capget(&header, data);
        data[0].effective &= ~(1u << number);
        syscall(SYS_capset, &header, data);
    }
}

static void by_capset(void) {
    try_all("with capabilities");
    drop_capabilities(-1);
    try_all("capset");
}

static void by_raw_capset(void) {
    try_all("with capabilities");
    drop_capabilities(CAP_DAC_OVERRIDE);
    drop_capabilities(CAP_DAC_READ_SEARCH);
    try_all("raw capset");
}

static void by_raw_setresuid(void) {
    try_all("root");
    syscall(SYS_setgroups, 0, NULL);
    syscall(SYS_setresgid, 1001, 1001, 1001);
    syscall(SYS_setresuid, 1001, 1001, 1001);
    try_all("raw setresuid");
}

static void undumpable(void) {
    prctl(PR_SET_DUMPABLE, 0);
    try_all("root, not dumpable");
    setresgid(1001, 1001, 1001);
    setresuid(1001, 1001, 1001);
    prctl(PR_SET_DUMPABLE, 0);
    try_all("user, not dumpable");
}

static void by_chroot(void) {
    struct stat seen;
    printf("before: %d\n", attempt(stat("root/file", &seen)));
    printf("chroot: %d\n", attempt(chroot("root")));
    printf("inside: %d %d\n", attempt(stat("/file", &seen)), opening("/file", O_RDONLY));
    printf("outside: %d\n", attempt(stat("../root-file", &seen)));
    chdir("/");
    printf("work: %d\n", work_at("/", "jail"));
    pid_t pid = fork();
    if (pid == 0) _exit(work_at("/", "child"));
    int status;
    waitpid(pid, &status, 0);
    printf("child: %x\n", status);
}

static void by_unshare(void) {
    struct stat seen;
    char here[4000], path[4096];
    getcwd(here, sizeof here);
    snprintf(path, sizeof path, "%s/root", here);
    printf("unshare: %d\n", attempt(unshare(CLONE_NEWNS)));
    mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL);
    printf("mount: %d\n", attempt(mount("tmpfs", path, "tmpfs", 0, NULL)));
    snprintf(path, sizeof path, "%s/root/file", here);
    printf("hidden: %d %d\n", attempt(stat(path, &seen)), opening(path, O_CREAT | O_WRONLY));
    snprintf(path, sizeof path, "%s/owner/file", here);
    printf("beside: %d\n", opening(path, O_RDONLY));
    fflush(stdout);
    execlp("sh", "sh", "-c", "cat root/file owner/file; ls root", (char *)NULL);
}

/* A program that was not told: only raw system calls lead it into its own mount namespace. */
static void by_raw_unshare(void) {
    struct stat seen;
    char here[4000], path[4096];
    getcwd(here, sizeof here);
    snprintf(path, sizeof path, "%s/root", here);
    pid_t pid = syscall(SYS_clone, CLONE_NEWNS | SIGCHLD, 0, 0, 0, 0);
    if (pid == 0) {
        mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL);
        printf("mount: %d\n", attempt(mount("tmpfs", path, "tmpfs", 0, NULL)));
        snprintf(path, sizeof path, "%s/root/file", here);
        printf("hidden: %d %d\n", attempt(stat(path, &seen)), opening(path, O_CREAT | O_WRONLY));
        snprintf(path, sizeof path, "%s/owner/file", here);
        printf("beside: %d\n", opening(path, O_RDONLY));
        fflush(stdout);
        _exit(0);
    }
    int status;
    waitpid(pid, &status, 0);
    printf("child: %x\n", status);
}

static void without_proc(void) {
    syscall(SYS_unshare, CLONE_NEWNS);
    mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL);
    printf("umount: %d\n", attempt(umount2("/proc", MNT_DETACH)));
    printf("work: %d\n", work_at(".", "no-proc"));
    fflush(stdout);
    execlp("sh", "sh", "-c", "umask 022; cat owner/file; echo x > made; cat made; rm made", (char *)NULL);
}

static volatile int stop;

static void *masking(void *unused) {
    for (int again = 0; again < 400; again++) umask(again % 2 ? 077 : 027);
    return unused;
}

static void *making(void *number) {
    char name[40];
    long bad = 0;
    while (!stop) {
        struct stat seen;
        snprintf(name, sizeof name, "mask-%ld", (long)number);
        int fd = open(name, O_CREAT | O_EXCL | O_WRONLY, 0666);
        if (fd < 0 || fstat(fd, &seen) || close(fd) || unlink(name)) bad = __LINE__;
        else if ((seen.st_mode & 0777) != 0600 && (seen.st_mode & 0777) != 0640) bad = seen.st_mode;
    }
    return (void *)bad;
}

static void masks(void) {
    pthread_t setters[4], makers[2];
    void *result;
    umask(077);
    for (long i = 0; i < 2; i++) pthread_create(&makers[i], NULL, making, (void *)i);
    for (int round = 0; round < 20; round++) {
        for (int i = 0; i < 4; i++) pthread_create(&setters[i], NULL, masking, NULL);
        for (int i = 0; i < 4; i++) pthread_join(setters[i], NULL);
    }
    stop = 1;
    for (int i = 0; i < 2; i++) {
        pthread_join(makers[i], &result);
        printf("maker: %lo\n", (long)result);
    }
    struct stat seen;
    int agree = 0;
    for (int round = 0; round < 20; round++) {
        for (int i = 0; i < 4; i++) pthread_create(&setters[i], NULL, masking, NULL);
        for (int i = 0; i < 4; i++) pthread_join(setters[i], NULL);
        close(open("masked", O_CREAT | O_WRONLY, 0666));
        stat("masked", &seen);
        unlink("masked");
        mode_t mask = umask(0);
        umask(mask);
        agree += (seen.st_mode & 0777) == (0666 & ~mask);
    }
    printf("agree: %d\n", agree);
    umask(0);
    close(open("masked", O_CREAT | O_WRONLY, 0666));
    stat("masked", &seen);
    printf("none: %o\n", seen.st_mode);
}

/* A filter that kills at any system call that reading a file does not need. */
static void sandbox(int raw) {
    struct stat seen;
    char buffer[20];
    printf("before: %d\n", opening("sub/f2", O_RDONLY));
    fflush(stdout);
    /* What nobody has looked at yet, and memory to list it without asking for more. */
    int root = open("/", O_RDONLY | O_DIRECTORY);
    free(malloc(100000));
    static const int allowed[] = {SYS_read, SYS_write, SYS_close, SYS_openat, SYS_newfstatat, SYS_fstat, SYS_exit_group,
#ifdef SYS_unlink
                                  SYS_unlink,
#endif
                                  SYS_exit, SYS_lseek, SYS_unlinkat, SYS_getdents64, SYS_fcntl};
    struct sock_filter code[40];
    int n = 0, count = sizeof allowed / sizeof *allowed;
    code[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0);
    for (int i = 0; i < count; i++)
        code[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, allowed[i], count - i, 0);
    code[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS);
    code[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    struct sock_fprog program = {n, code};
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    int result = raw ? (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program)
                     : prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
    if (result) printf("no filter: %d\n", errno);
    int fd = open("sub/f2", O_RDONLY);
    ssize_t len = read(fd, buffer, sizeof buffer);
    int sized = stat("sub/f2", &seen) ? -1 : (int)seen.st_size;
    close(fd);
    int missing = attempt(stat("none", &seen)), removed = attempt(unlink("f3"));
    DIR *list = fdopendir(root);
    int names = 0;
    while (list && readdir(list)) names++;
    dprintf(1, "inside: %zd %d %d %d, %d in the root\n", len, sized, missing, removed, names > 2);
    _exit(0);
}

/* --- little memory --- */

static void memory(int megabytes) {
    struct rlimit limit = {(rlim_t)megabytes << 20, (rlim_t)megabytes << 20};
    printf("setrlimit: %d\n", setrlimit(RLIMIT_AS, &limit));
    printf("work: %d\n", work_at(".", "memory"));
    /* The program counts on what the limit leaves it. */
    char *used = malloc((size_t)(megabytes - 20) << 20);
    printf("malloc: %d, work: %d\n", used != NULL, work_at(".", "memory"));
}

int main(int argc, char **argv) {
    struct { const char *name; void (*body)(void); } bodies[] = {
        {"setuid", by_setuid}, {"seteuid", by_seteuid}, {"setresuid", by_setresuid}, {"initgroups", by_initgroups},
        {"setfsuid", by_setfsuid}, {"capset", by_capset}, {"raw capset", by_raw_capset}, {"raw setresuid", by_raw_setresuid},
        {"dumpable", undumpable}, {"chroot", by_chroot}, {"unshare", by_unshare}, {"raw unshare", by_raw_unshare},
    };
    const char *what = argv[1];
    umask(022);
    if (!strcmp(what, "ids")) {
        for (size_t i = 0; i < sizeof bodies / sizeof *bodies; i++) {
            printf("--- %s\n", bodies[i].name);
            in_child(bodies[i].body);
        }
        try_all("parent");
    } else if (!strcmp(what, "no-proc")) without_proc();
    else if (!strcmp(what, "masks")) masks();
    else if (!strcmp(what, "sandbox")) sandbox(0);
    else if (!strcmp(what, "raw-sandbox")) sandbox(1);
    else if (!strcmp(what, "memory")) memory(atoi(argv[2]));
    else if (!strcmp(what, "who")) {
        printf("%d.%d\n", geteuid(), getegid());
        try_all("who");
    } else return 97;
    return 0;
}
