/* Ways to start processes and programs. The argument says which; what it prints is to be the same everywhere. */
#include "work.h"
#include <dirent.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <sys/resource.h>
#include <sys/time.h>
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

/* --- what a vfork child changes is its own, though it uses its parent's memory --- */

/* Changes descriptors, the current directory and the mask; the number of the line that went wrong, 0 if none did. */
static int change_everything(int fd, int dir) {
    struct stat seen;
    char buffer[16];
    umask(077);
    if (chdir("sub") || stat("f2", &seen) || seen.st_size != 9) return __LINE__;
    int made = open("by-child", O_CREAT | O_EXCL | O_WRONLY, 0666);
    if (made < 0 || write(made, "child", 5) != 5 || fstat(made, &seen) || seen.st_size != 5) return __LINE__;
    if ((seen.st_mode & 0777) != 0600) return __LINE__;
    if (dup2(made, dir) != dir || close(made) || fstatat(dir, "f2", &seen, 0) != -1 || errno != ENOTDIR) return __LINE__;
    if (close(fd) || open("f2", O_RDONLY) != fd || read(fd, buffer, sizeof buffer) != 9) return __LINE__;
    if (rename("by-child", "by-vfork") || stat("by-child", &seen) != -1 || errno != ENOENT) return __LINE__;
    FILE *file = fopen("f2", "r");
    if (!file || fread(buffer, 1, 9, file) != 9 || fclose(file)) return __LINE__;
    closefrom(3);
    if (fcntl(fd, F_GETFD) != -1 || open("../f3", O_RDONLY) != 3 || work_at(".", "changed")) return __LINE__;
    if (chmod("by-vfork", 0640) || unlink("f2") || creat("f2", 0644) != 4 || write(4, "contents!", 9) != 9) return __LINE__;
    return 0;
}

static int change_in_clone(void *fds) { _exit(change_everything(((int *)fds)[0], ((int *)fds)[1])); }

static void show_nothing_changed(int fd, int dir, DIR *list) {
    struct stat seen;
    char buffer[16];
    int entries = 0;
    mode_t mask = umask(027);
    printf("mask %o, offset %ld, ", mask, (long)lseek(fd, 0, SEEK_CUR));
    printf("read %ld, size %ld, ", (long)pread(fd, buffer, sizeof buffer, 0), fstat(fd, &seen) ? -1 : (long)seen.st_size);
    printf("of the list %d, ", fstatat(dir, "f2", &seen, 0) ? -1 : (int)seen.st_size);
    while (readdir(list)) entries++;
    printf("%d entries, moved here %d %d, ", entries, stat("by-vfork", &seen), errno);
    printf("there %d %o, ", stat("sub/by-vfork", &seen), seen.st_mode & 0777);
    printf("work %d\n", work_at(".", "unchanged"));
    rewinddir(list);
    unlink("sub/by-vfork");
}

static void vfork_changes(void) {
    int fds[2] = {open("f1", O_RDONLY | O_CLOEXEC), open("sub", O_RDONLY | O_DIRECTORY)};
    DIR *list = opendir(".");
    char buffer[3];
    umask(027);
    read(fds[0], buffer, 3);
    for (int round = 0; round < 3; round++) {
        readdir(list);
        pid_t pid = vfork();
        if (pid == 0) _exit(change_everything(fds[0], fds[1]));
        printf("vfork child: %d\n", ended(pid));
        show_nothing_changed(fds[0], fds[1], list);
    }
    static char stack[1 << 18] __attribute__((aligned(64)));
    pid_t pid = clone(change_in_clone, stack + sizeof stack, CLONE_VM | CLONE_VFORK | SIGCHLD, fds);
    printf("clone child: %d\n", ended(pid));
    show_nothing_changed(fds[0], fds[1], list);
    closedir(list);
}

/* --- descriptors that a vfork child hands on, under other numbers --- */

static void same(const char *name, int fd) {
    struct stat one, two;
    if (fstat(fd, &one) || stat(name, &two)) _exit(96);
    _exit(one.st_dev == two.st_dev && one.st_ino == two.st_ino && one.st_size == two.st_size ? 0 : 1);
}

static void vfork_hands_on(void) {
    int fd = open("f1", O_RDONLY | O_CLOEXEC), other = open("f3", O_RDONLY);
    char buffer[4], number[12];
    struct stat seen;
    read(fd, buffer, 3);
    fstat(fd, &seen);
    pid_t pid = vfork();
    if (pid == 0) {
        dup2(fd, 7);
        execl(self, self, "same", "f1", "7", (char *)NULL);
        _exit(99);
    }
    printf("by another number: %d\n", ended(pid));
    snprintf(number, sizeof number, "%d", fd);
    pid = vfork();
    if (pid == 0) {
        close(fd);
        if (open("sub/f2", O_RDONLY) != fd) _exit(95);
        execle(self, self, "same", "sub/f2", number, (char *)NULL, environ);
        _exit(99);
    }
    printf("another one by its number: %d\n", ended(pid));
    pid = vfork();
    if (pid == 0) {
        dup2(other, fd);
        execl(self, self, "same", "f3", number, (char *)NULL);
        _exit(99);
    }
    printf("replaced: %d\n", ended(pid));
    pid = vfork();
    if (pid == 0) {
        execl("missing", self, (char *)NULL);
        _exit(errno == ENOENT && stat("f1", &seen) == 0 ? 0 : 99);
    }
    printf("no program: %d\n", ended(pid));
    pid = vfork();
    if (pid == 0) {
        char *arguments[] = {(char *)self, "same", "f1", "7", NULL};
        pid_t inner;
        dup2(fd, 7);
        _exit(posix_spawn(&inner, self, NULL, NULL, arguments, environ) ? 98 : ended(inner));
    }
    printf("spawned: %d\n", ended(pid));
    printf("offset %ld, work %d\n", (long)lseek(fd, 0, SEEK_CUR), work_at(".", "handed"));
}

/* --- directories that a vfork child reads, and numbers that it uses: those of the library are its parent's --- */

static int entries(DIR *list, int most) {
    int count = 0;
    while (count < most && readdir(list)) count++;
    return count;
}

/* Puts a file at many numbers, where others have been perhaps. */
static int put_everywhere(int fd) {
    int count = 0;
    for (int number = 300; number < 1020; number++) count += dup2(fd, number) == number;
    return count;
}

static int enter_sub(void *unused) { _exit(unused || chdir("sub") || umask(022) != 027); }

static void vfork_lists(void) {
    char name[80];
    struct stat one, two;
    int fd = open("f1", O_RDONLY | O_CLOEXEC);
    mkdir("many", 0755);
    for (int number = 0; number < 2000; number++) {
        snprintf(name, sizeof name, "many/%040d", number);
        close(creat(name, 0644));
    }
    DIR *list = opendir("many");
    int count = entries(list, 100);
    pid_t pid = vfork();
    if (pid == 0) {
        count += entries(list, 1000);
        _exit(0);
    }
    printf("lists: %d, ", ended(pid));
    count += entries(list, 100);
    pid = vfork();
    if (pid == 0) {
        count += entries(list, 300);
        _exit(0);
    }
    printf("%d, all %d\n", ended(pid), count + entries(list, 5000));
    rewinddir(list);
    entries(list, 10);
    pid = vfork();
    if (pid == 0) {
        int own = creat("many-own", 0644);
        if (put_everywhere(own) != 720 || entries(list, 5000) == 0) _exit(1);
        /* A stream of its own, by its parent's number. */
        close(fd);
        DIR *other = opendir("sub");
        if (!other || dirfd(other) != fd || entries(other, 5000) < 3 || closedir(other)) _exit(2);
        pid_t inner = fork();
        if (inner == 0) {
            for (int number = 300; number < 1020; number++)
                if (fcntl(number, F_GETFD) || close(number)) _exit(3);
            execl(self, self, "show", "numbers", (char *)NULL);
            _exit(99);
        }
        _exit(ended(inner));
    }
    printf("numbers: %d, ", ended(pid));
    printf("written %d %ld, ", stat("many-own", &one), (long)one.st_size);
    printf("same %d\n", !fstat(fd, &one) && !stat("f1", &two) && one.st_dev == two.st_dev && one.st_ino == two.st_ino);
    rewinddir(list);
    entries(list, 10);
    pid = vfork();
    if (pid == 0) {
        closefrom(3);
        errno = 0;
        entries(list, 5000);
        _exit(errno == EBADF ? 0 : 1);
    }
    printf("closed: %d, ", ended(pid));
    rewinddir(list);
    printf("again %d\n", entries(list, 5000));
    closedir(list);
    static char stack[1 << 18] __attribute__((aligned(64)));
    umask(027);
    pid = clone(enter_sub, stack + sizeof stack, CLONE_VM | CLONE_VFORK | CLONE_FS | SIGCHLD, NULL);
    printf("entered: %d, ", ended(pid));
    printf("here %d, mask %o, work %d\n", stat("f2", &one) ? -1 : (int)one.st_size, umask(022), work_at(".", "entered"));
}

/* --- vfork among threads and signals, in children, and often --- */

static void *vforking(void *unused) {
    long bad = 0;
    char own_name[60];
    snprintf(own_name, sizeof own_name, "in-a-vfork-child-%d", (int)gettid());
    for (int round = 0; round < 12; round++) {
        pid_t pid = vfork();
        if (pid == 0) {
            if (round % 2) execl(self, self, "brief", own_name, (char *)NULL);
            _exit(brief_work(own_name) ? 1 : 0);
        }
        int status = ended(pid);
        if (status) bad = status;
        char tag[40];
        snprintf(tag, sizeof tag, "vforker-%d", (int)gettid());
        int line = work_at(".", tag);
        if (line) bad = 1000 + line;
    }
    return (void *)bad;
}

static volatile int alarms, bad_alarms;
static void alarmed(int signal) {
    alarms++;
    if (brief_work("in-a-handler")) bad_alarms++;
}

static long pages_mapped(void) {
    long pages = -1;
    FILE *file = fopen("/proc/self/statm", "r");
    if (!file || fscanf(file, "%ld", &pages) != 1) pages = -1;
    if (file) fclose(file);
    return pages;
}

static void vfork_often(void) {
    long before = 0, bad = 0;
    for (int round = 0; round < 60; round++) {
        if (round == 20) before = pages_mapped();
        pid_t pid = vfork();
        if (pid == 0) {
            execle(self, self, "brief", "often", (char *)NULL, own);
            _exit(99);
        }
        if (ended(pid)) bad++;
    }
    printf("bad %ld, memory grew by %ld pages\n", bad, pages_mapped() - before);
}

static void *brief_thread(void *unused) { return (void *)(long)brief_work("in-a-thread-of-a-grandchild"); }

static void vfork_in_vfork(void) {
    pid_t pid = vfork();
    if (pid == 0) {
        pid_t inner = vfork();
        if (inner == 0) {
            if (chdir("sub")) _exit(1);
            execl(self, self, "show", "inner", (char *)NULL);
            _exit(99);
        }
        int status = ended(inner);
        _exit(status ? status : brief_work("between"));
    }
    printf("vfork in a vfork child: %d, work %d\n", ended(pid), work_at(".", "nested"));
    pid = vfork();
    if (pid == 0) {
        if (chdir("sub")) _exit(1);
        pid_t inner = fork();
        if (inner == 0) {
            pthread_t thread;
            void *result = (void *)1L;
            if (chdir("..") || pthread_create(&thread, NULL, brief_thread, NULL)) _exit(2);
            pthread_join(thread, &result);
            if (result || work_at(".", "grandchild")) _exit(3);
            execl(self, self, "show", "forked", (char *)NULL);
            _exit(99);
        }
        _exit(ended(inner));
    }
    printf("fork in a vfork child: %d, work %d\n", ended(pid), work_at(".", "nested"));
}

static void vfork_among_others(void) {
    struct sigaction action = {.sa_handler = alarmed, .sa_flags = SA_RESTART};
    struct itimerval often = {{0, 700}, {0, 700}}, never = {{0, 0}, {0, 0}};
    sigaction(SIGALRM, &action, NULL);
    setitimer(ITIMER_REAL, &often, NULL);
    for (int round = 0; round < 2 || alarms < 20; round++) {
        printf("%s", round ? "" : "vforks: ");
        long bad = (long)vforking(NULL);
        if (bad || !round) printf("%ld\n", bad);
    }
    setitimer(ITIMER_REAL, &never, NULL);
    printf("bad in handlers: %d\n", bad_alarms);
    pthread_t busy_threads[2], vforking_threads[3];
    static char *tags[] = {"t0", "t1"};
    for (int i = 0; i < 2; i++) pthread_create(&busy_threads[i], NULL, busy, tags[i]);
    for (int i = 0; i < 3; i++) pthread_create(&vforking_threads[i], NULL, vforking, NULL);
    void *result;
    for (int i = 0; i < 3; i++) {
        pthread_join(vforking_threads[i], &result);
        printf("children: %ld\n", (long)result);
    }
    stop = 1;
    for (int i = 0; i < 2; i++) {
        pthread_join(busy_threads[i], &result);
        printf("thread: %ld\n", (long)result);
    }
    vfork_often();
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
    else if (!strcmp(what, "vfork-changes")) vfork_changes();
    else if (!strcmp(what, "vfork-hands-on")) vfork_hands_on();
    else if (!strcmp(what, "vfork-lists")) vfork_lists();
    else if (!strcmp(what, "vfork-in-vfork")) vfork_in_vfork();
    else if (!strcmp(what, "vfork-among-others")) vfork_among_others();
    else if (!strcmp(what, "same")) same(argv[2], atoi(argv[3]));
    else if (!strcmp(what, "brief")) return brief_work(argv[2]) != 0;
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
