/* Ways to start processes and programs. The argument says which; what it prints is to be the same everywhere. */
#include "work.h"
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <sys/resource.h>
#include <sys/wait.h>

extern char **environ;
static char self[4096];

static int ended(pid_t pid) {
    int status = -1;
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {}
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

/* --- children of programs with threads --- */

static volatile int stop;

static void *busy(void *tag) {
    long rounds = 0, bad = 0;
    while (!stop) {
        bad = bad ? bad : work_at(".", tag);
        rounds++;
    }
    return (void *)(bad ? bad : rounds == 0);
}

static void *forking(void *number) {
    long bad = 0;
    for (int round = 0; round < 8; round++) {
        pid_t pid = fork();
        if (pid == 0) {
            char tag[40];
            snprintf(tag, sizeof tag, "child-%d", getpid());
            int line = 0;
            for (int again = 0; again < 3 && !line; again++) line = work_at(".", tag);
            _exit(line > 255 ? 255 : line);
        }
        int status = ended(pid);
        if (status) bad = status;
    }
    return (void *)bad;
}

static void fork_in_threads(void) {
    pthread_t busy_threads[3], forking_threads[4];
    static char *tags[] = {"t0", "t1", "t2"};
    for (int i = 0; i < 3; i++) pthread_create(&busy_threads[i], NULL, busy, tags[i]);
    for (int i = 0; i < 4; i++) pthread_create(&forking_threads[i], NULL, forking, NULL);
    void *result;
    for (int i = 0; i < 4; i++) {
        pthread_join(forking_threads[i], &result);
        printf("children: %ld\n", (long)result);
    }
    stop = 1;
    for (int i = 0; i < 3; i++) {
        pthread_join(busy_threads[i], &result);
        printf("thread: %ld\n", (long)result);
    }
}

/* --- children that lack descriptors: the kernel copies descriptors before memory, so what another thread opens in between is
   known to the child but not there --- */

/* close(2) unseen by any library. */
static void close_unseen(int fd) {
#if defined(__x86_64__)
    long result;
    __asm__ volatile("syscall" : "=a"(result) : "0"(3L), "D"((long)fd) : "rcx", "r11", "memory");
#elif defined(__aarch64__)
    register long number __asm__("x8") = 57, argument __asm__("x0") = fd;
    __asm__ volatile("svc 0" : "+r"(argument) : "r"(number) : "memory");
#endif
}

static void lacking(void) {
    int fd = open("f1", O_RDONLY), ends[2];
    struct stat seen;
    stat("f1", &seen);
    for (int number = fd; number < 1024; number++) close_unseen(number);
    pid_t pid = fork();
    if (pid == 0) {
        if (pipe(ends) || ends[0] != fd || fstat(fd, &seen) || !S_ISFIFO(seen.st_mode)) _exit(1);
        _exit(stat("f1", &seen) || seen.st_size != 8 ? 2 : work_at(".", "lacking"));
    }
    printf("lacking: %d\n", ended(pid));
    fflush(stdout);
    _exit(0);
}

/* --- vfork, and a descriptor that both use --- */

static void vfork_children(void) {
    int fd = open("f1", O_RDWR);
    char buffer[9] = "";
    read(fd, buffer, 3);
    pid_t pid = vfork();
    if (pid == 0) {
        execl(self, self, "show", "vforked", (char *)NULL);
        _exit(99);
    }
    printf("vfork and exec: %d\n", ended(pid));
    pid = vfork();
    if (pid == 0) _exit(lseek(fd, 2, SEEK_CUR) == 5 ? 7 : 8);
    int status = ended(pid);
    printf("vfork and exit: %d, offset %ld\n", status, (long)lseek(fd, 0, SEEK_CUR));
    printf("work: %d\n", work_at(".", "vfork"));
    close(fd);
}

/* --- posix_spawn --- */

static void spawn(const char *what, posix_spawn_file_actions_t *actions, char *mode) {
    char *argv[] = {self, mode, (char *)what, NULL};
    pid_t pid;
    int error = posix_spawn(&pid, self, actions, NULL, argv, environ);
    if (error) printf("%s: error %d\n", what, error);
    else printf("%s: %d\n", what, ended(pid));
}

static void spawning(void) {
    posix_spawn_file_actions_t actions;
    char buffer[100] = "";
    int fd = open("f1", O_RDWR);
    lseek(fd, 3, SEEK_SET);

    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 1, "spawned", O_CREAT | O_TRUNC | O_WRONLY, 0644);
    posix_spawn_file_actions_adddup2(&actions, fd, 0);
    posix_spawn_file_actions_addclose(&actions, fd);
    spawn("open and dup2", &actions, "copy");
    posix_spawn_file_actions_destroy(&actions);
    int made = open("spawned", O_RDONLY);
    buffer[read(made, buffer, 99)] = 0;
    printf("copied \"%s\", offset %ld\n", buffer, (long)lseek(fd, 0, SEEK_CUR));
    close(made);

    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addchdir_np(&actions, "sub");
    spawn("chdir", &actions, "show");
    posix_spawn_file_actions_destroy(&actions);

    int sub = open("sub", O_RDONLY | O_DIRECTORY);
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addfchdir_np(&actions, sub);
    posix_spawn_file_actions_addclosefrom_np(&actions, 3);
    spawn("fchdir and closefrom", &actions, "show");
    posix_spawn_file_actions_destroy(&actions);

    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 5, "missing/file", O_RDONLY, 0);
    spawn("open of nothing", &actions, "show");
    posix_spawn_file_actions_destroy(&actions);
    close(sub);
    close(fd);
    printf("work: %d\n", work_at(".", "spawn"));
}

/* --- exec with an environment of the program's own --- */

static void in_child(const char *what, void (*exec)(void)) {
    printf("%s:\n", what);
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        exec();
        _exit(98);
    }
    printf("  ended with %d\n", ended(pid));
    fflush(stdout);
}

static char *own[] = {"OWN=1", "PATH=/usr/bin:/bin", NULL};
static char *nothing[] = {NULL};
static char *shown[] = {self, "show", "x", NULL};
static void by_execve(void) { execve(self, shown, own); }
static void by_execve_empty(void) { execve(self, shown, nothing); }
static void by_execve_null(void) { execve(self, shown, NULL); }
static void by_execle(void) { execle(self, self, "show", "execle", (char *)NULL, own); }
static void by_execvpe(void) { execvpe(self, shown, own); }
static void by_execv_after_clearenv(void) { clearenv(); execv(self, shown); }
static void by_execlp(void) { execlp("sh", "sh", "-c", "cat f1; echo; ls sub; exit 6", (char *)NULL); }
static void by_fexecve(void) { fexecve(open(self, O_RDONLY | O_CLOEXEC), shown, own); }
static void by_execveat(void) { execveat(open(self, O_PATH | O_CLOEXEC), "", shown, own, AT_EMPTY_PATH); }
static void by_execveat_relative(void) { execveat(open(".", O_RDONLY), "program", shown, own, 0); }
static void script(void) { execve("script", (char *[]){"script", "a b", NULL}, own); }
static void nested(void) {
    unsetenv("LD_PRELOAD");
    execlp("env", "env", "-i", "PATH=/usr/bin:/bin", "sh", "-c", "cat f1; exec env - cat sub/f2", (char *)NULL);
}

static void environments(void) {
    in_child("execve", by_execve);
    in_child("execve, empty", by_execve_empty);
    in_child("execve, null", by_execve_null);
    in_child("execle", by_execle);
    in_child("execvpe", by_execvpe);
    in_child("execv after clearenv", by_execv_after_clearenv);
    in_child("execlp", by_execlp);
    in_child("fexecve", by_fexecve);
    in_child("execveat", by_execveat);
    in_child("execveat of a program on the mount", by_execveat_relative);
    in_child("a script on the mount", script);
    in_child("env -i", nested);
}

static void failed_exec(void) {
    int fd = open("f1", O_RDWR | O_CLOEXEC);
    char buffer[4];
    read(fd, buffer, 3);
    struct { const char *what, *path; } cases[] = {
        {"nothing", "missing"}, {"no executable", "f1"}, {"directory", "sub"}, {"file as directory", "f1/x"},
        {"no interpreter", "broken"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        execve(cases[i].path, (char *[]){"x", NULL}, own);
        printf("%s: %d\n", cases[i].what, errno);
        execlp(cases[i].path, "x", (char *)NULL);
        printf("%s: %d\n", cases[i].what, errno);
        int line = work_at(".", "failed");
        printf("offset %ld, still open %d, work %d\n", (long)lseek(fd, 0, SEEK_CUR), fcntl(fd, F_GETFD), line);
    }
    pid_t pid;
    int error = posix_spawn(&pid, "missing", NULL, NULL, (char *[]){"x", NULL}, own);
    printf("spawn of nothing: %d, work %d\n", error, work_at(".", "failed"));
    close(fd);
}

/* --- a daemon --- */

static void daemonise(void) {
    char here[4000], path[4096];
    getcwd(here, sizeof here);
    int held = open("f1", O_RDONLY);
    int report[2];
    pipe(report);
    pid_t pid = fork();
    if (pid == 0) {
        setsid();
        if (fork() > 0) _exit(0);
        chdir("/");
        umask(027);
        struct rlimit limit;
        getrlimit(RLIMIT_NOFILE, &limit);
        for (int fd = 0; fd < (int)limit.rlim_cur; fd++)
            if (fd != report[1]) close(fd);
        open("/dev/null", O_RDWR);
        dup(0);
        dup(0);
        int line = work_at(here, "daemon");
        snprintf(path, sizeof path, "%s/pidfile", here);
        FILE *file = fopen(path, "w");
        if (!file || fputs("me\n", file) < 0 || fclose(file)) line = line ? line : __LINE__;
        dprintf(report[1], "daemon: %d, next number %d\n", line, open(path, O_RDONLY));
        _exit(0);
    }
    close(report[1]);
    char buffer[200] = "";
    ended(pid);
    ssize_t len = 0, more;
    while ((more = read(report[0], buffer + len, sizeof buffer - 1 - len)) > 0) len += more;
    printf("%s", buffer);
    struct stat made;
    stat("pidfile", &made);
    printf("mode %o, size %ld\n", made.st_mode, (long)made.st_size);
    close(held);
}

/* --- what the started programs do --- */

static void show(const char *what) {
    int foreign = 0;
    for (char **variable = environ; *variable; variable++) {
        if (!strncmp(*variable, "LD_PRELOAD=", 11) || !strncmp(*variable, "FINESSE_", 8)) continue;
        foreign++;
        if (!strncmp(*variable, "OWN=", 4)) printf("  %s\n", *variable);
    }
    struct stat seen;
    int in_sub = !stat("f2", &seen);
    printf("  %s: work %d, in sub: %d, next number %d\n", what, work_at(".", "shown"), in_sub,
           open(in_sub ? "f2" : "f1", O_RDONLY));
    fflush(stdout);
    _exit(foreign > 5 ? 0 : foreign);
}

static void copy(void) {
    char buffer[100];
    ssize_t len = read(0, buffer, 4);
    write(1, buffer, len);
    _exit(0);
}

int main(int argc, char **argv) {
    self[readlink("/proc/self/exe", self, sizeof self - 1)] = 0;
    const char *what = argv[1];
    if (!strcmp(what, "threads")) fork_in_threads();
    else if (!strcmp(what, "lacking")) lacking();
    else if (!strcmp(what, "vfork")) vfork_children();
    else if (!strcmp(what, "spawn")) spawning();
    else if (!strcmp(what, "environments")) environments();
    else if (!strcmp(what, "failed")) failed_exec();
    else if (!strcmp(what, "daemon")) daemonise();
    else if (!strcmp(what, "show")) show(argv[2]);
    else if (!strcmp(what, "copy")) copy();
    else if (!strcmp(what, "work")) {
        int line = work_at(".", "worker");
        printf("work: %d\n", line);
        return line != 0;
    }
    else return 97;
    return 0;
}
