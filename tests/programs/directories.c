/* Lists directories in every way that libc has, and says what came out. The first argument is what to do, the
 * second a directory of the test's own. What it prints depends on nothing but what POSIX and Linux promise. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK(what) do { if (!(what)) { printf("line %d: %s: %s\n", __LINE__, #what, strerror(errno)); exit(1); } } while (0)

static char *names[100000];
static int count;

static int by_name(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

static void forget(void)
{
    for (int i = 0; i < count; i++)
        free(names[i]);
    count = 0;
}

static void note(const char *name) { names[count++] = strdup(name); }

static unsigned long digest(void)
{
    unsigned long hash = 5381;
    qsort(names, count, sizeof *names, by_name);
    for (int i = 0; i < count; i++)
        for (const char *c = names[i]; *c; c++)
            hash = hash * 33 ^ (unsigned char)*c;
    return hash;
}

/* Reads the rest of a stream into the names. */
static void rest(DIR *d)
{
    struct dirent *e;
    errno = 77;
    while ((e = readdir(d)))
        note(e->d_name);
    CHECK(errno == 77);
}

static void report(const char *what)
{
    printf("%s: %d names, %lx\n", what, count, digest());
    if (count < 40)
        for (int i = 0; i < count; i++)
            printf("  %s\n", names[i]);
    for (int i = 1; i < count; i++)
        if (!strcmp(names[i - 1], names[i]))
            printf("  twice: %s\n", names[i]);
    forget();
}

static void say(const char *what, int result) { printf("%s: %d %s\n", what, result, result < 0 ? strerrorname_np(errno) : ""); }

static DIR *must_open(const char *path)
{
    DIR *d = opendir(path);
    CHECK(d);
    return d;
}

/* --- what entries are --- */

static void entries(const char *path)
{
    struct dirent *e;
    struct stat st;
    char full[9000];
    DIR *d = must_open(path);
    while ((e = readdir(d))) {
        snprintf(full, sizeof full, "%s/%s", path, e->d_name);
        CHECK(lstat(full, &st) == 0);
        note(e->d_name);
        if (strcmp(e->d_name, "..") && e->d_ino != st.st_ino)
            printf("d_ino of %s\n", e->d_name);
        if (e->d_type != IFTODT(st.st_mode))
            printf("d_type of %s: %d\n", e->d_name, e->d_type);
        if (e->d_reclen < strlen(e->d_name) + 20 || e->d_reclen % 8)
            printf("d_reclen of %s: %d\n", e->d_name, e->d_reclen);
    }
    CHECK(readdir(d) == NULL);
    say("closedir", closedir(d));
    report("entries");
}

static void errors(const char *path)
{
    char full[9000];
    static char endless[6000];
    const char *bad[] = { "nothing", "file", "file/", "file/x", "empty/nothing", "dangling", "loop", "fifo" };
    for (unsigned i = 0; i < sizeof bad / sizeof *bad; i++) {
        snprintf(full, sizeof full, "%s/%s", path, bad[i]);
        errno = 0;
        DIR *d = opendir(full);
        printf("opendir %s: %s %s\n", bad[i], d ? "open" : "no", strerrorname_np(errno));
    }
    errno = 0;
    printf("empty: %p %s\n", (void *)opendir(""), strerrorname_np(errno));
    memset(endless, 'x', sizeof endless - 1);
    printf("endless: %p %s\n", (void *)opendir(endless), strerrorname_np(errno));
    snprintf(full, sizeof full, "%s/%.300s", path, endless);
    printf("long: %p %s\n", (void *)opendir(full), strerrorname_np(errno));
    struct dirent **list;
    snprintf(full, sizeof full, "%s/nothing", path);
    say("scandir", scandir(full, &list, NULL, NULL));
    printf("fdopendir: %p %s\n", (void *)fdopendir(-1), strerrorname_np(errno));
    snprintf(full, sizeof full, "%s/file", path);
    int fd = open(full, O_RDONLY);
    printf("fdopendir of a file: %p %s\n", (void *)fdopendir(fd), strerrorname_np(errno));
}

/* --- positions --- */

static void positions(const char *path)
{
    static long where[3000];
    struct dirent *e;
    int n = 0;
    DIR *d = must_open(path);
    CHECK(telldir(d) == 0);
    where[0] = telldir(d);
    while ((e = readdir(d))) {
        CHECK(e->d_off == telldir(d));
        note(e->d_name);
        where[++n] = telldir(d);
    }
    for (int i = n - 1; i >= 0; i -= 7) {
        seekdir(d, where[i]);
        CHECK(telldir(d) == where[i]);
        e = readdir(d);
        if (!e || strcmp(e->d_name, names[i]))
            printf("position %d\n", i);
    }
    seekdir(d, where[n]);
    CHECK(readdir(d) == NULL);
    report("whole");
    rewinddir(d);
    CHECK(telldir(d) == 0);
    rest(d);
    report("again");
    CHECK(mkdirat(dirfd(d), "made meanwhile", 0755) == 0);
    rewinddir(d);
    rest(d);
    report("with what was made");
    CHECK(unlinkat(dirfd(d), "made meanwhile", AT_REMOVEDIR) == 0);
    rewinddir(d);
    rest(d);
    report("without what was removed");
    closedir(d);
}

#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
static void reentrant(const char *path)
{
    struct dirent place, *e;
    int result;
    DIR *d = must_open(path);
    while ((result = readdir_r(d, &place, &e)) == 0 && e) {
        CHECK(e == &place && place.d_reclen <= sizeof place);
        note(place.d_name);
    }
    printf("at the end: %d %p\n", result, (void *)e);
    report("readdir_r");
    closedir(d);
}

/* --- descriptors --- */

static void descriptor(const char *path)
{
    struct stat a, b;
    char here[9000], full[9000];
    DIR *d = must_open(path);
    for (int i = 0; i < 3; i++)
        note(readdir(d)->d_name);
    int fd = dirfd(d);
    CHECK(fd >= 0 && dirfd(d) == fd);
    CHECK(fstat(fd, &a) == 0 && stat(path, &b) == 0);
    CHECK(a.st_ino == b.st_ino && a.st_dev == b.st_dev && S_ISDIR(a.st_mode));
    printf("close on exec: %d, flags %x\n", fcntl(fd, F_GETFD), fcntl(fd, F_GETFL) & (O_ACCMODE | O_DIRECTORY));
    CHECK(fstatat(fd, names[2], &a, AT_SYMLINK_NOFOLLOW) == 0);
    int inner = openat(fd, "made", O_CREAT | O_RDWR | O_EXCL, 0600);
    CHECK(inner >= 0 && write(inner, "x", 1) == 1 && close(inner) == 0);
    CHECK(unlinkat(fd, "made", 0) == 0);
    CHECK(fchdir(fd) == 0);
    CHECK(getcwd(here, sizeof here) && realpath(path, full) && !strcmp(here, full));
    rest(d);
    report("around dirfd");
    CHECK(closedir(d) == 0);
    say("afterwards", fcntl(fd, F_GETFD));
}

static void of_descriptor(const char *path)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY), copy = dup(fd);
    DIR *d = fdopendir(fd);
    CHECK(d && dirfd(d) == fd);
    printf("close on exec: %d, the copy: %d\n", fcntl(fd, F_GETFD), fcntl(copy, F_GETFD));
    rest(d);
    report("fdopendir");
    CHECK(closedir(d) == 0);
    say("afterwards", fcntl(fd, F_GETFD));
    CHECK(d = fdopendir(dup(copy)));
    rest(d);
    report("a copy is at the end");
    rewinddir(d);
    rest(d);
    report("until it is rewound");
    CHECK(closedir(d) == 0);
    CHECK(lseek(copy, 0, SEEK_SET) == 0);
    char page[1024];
    ssize_t got = getdents64(copy, page, sizeof page);
    CHECK(got > 0);
    for (ssize_t at = 0; at < got; at += ((struct dirent64 *)(page + at))->d_reclen)
        note(((struct dirent64 *)(page + at))->d_name);
    CHECK(d = fdopendir(copy));
    rest(d);
    report("half by getdents64");
    closedir(d);
    printf("O_PATH: %d\n", fdopendir(open(path, O_PATH | O_DIRECTORY)) != NULL);
}

/* A stream and getdents64 on its descriptor: together they list everything once. A stream goes on where its descriptor has
 * been put. */
static void directly(const char *path)
{
    DIR *d = must_open(path);
    int fd = dirfd(d);
    char *page = malloc(1 << 20);
    ssize_t got;
    note(readdir(d)->d_name);
    while ((got = getdents64(fd, page, 1 << 20)) > 0)
        for (ssize_t at = 0; at < got; at += ((struct dirent64 *)(page + at))->d_reclen)
            note(((struct dirent64 *)(page + at))->d_name);
    rest(d);
    report("by both");
    CHECK(lseek(fd, 0, SEEK_SET) == 0);
    rest(d);
    report("from the beginning");
    closedir(d);
    d = must_open(path);
    off_t position = 0;
    fd = dirfd(d);
    note(readdir(d)->d_name);
    while ((got = getdirentries(fd, page, 1 << 20, &position)) > 0)
        for (ssize_t at = 0; at < got; at += ((struct dirent64 *)(page + at))->d_reclen)
            note(((struct dirent64 *)(page + at))->d_name);
    rest(d);
    report("by getdirentries");
    closedir(d);
    CHECK(d = fdopendir(open(path, O_RDONLY | O_DIRECTORY)));
    rest(d);
    forget();
    CHECK(syscall(SYS_lseek, dirfd(d), 0, SEEK_SET) == 0);
    rest(d);
    report("by number");
    closedir(d);
}

/* --- scandir --- */

static int seen;
static int short_names(const struct dirent *e)
{
    seen |= errno;
    errno = 5;
    return strlen(e->d_name) < 9;
}

static void scan(const char *path)
{
    struct dirent **list;
    errno = 77;
    int n = scandir(path, &list, NULL, alphasort);
    printf("alphasort: %d, errno %d\n", n, errno);
    for (int i = 0; i < n; i++) {
        if (n < 40)
            printf("  %s\n", list[i]->d_name);
        free(list[i]);
    }
    free(list);
    n = scandir(path, &list, short_names, versionsort);
    printf("filter and versionsort: %d, errno in the filter %d\n", n, seen);
    for (int i = 0; i < n; i++) {
        if (n < 40)
            printf("  %s\n", list[i]->d_name);
        free(list[i]);
    }
    free(list);
    int fd = open(path, O_RDONLY | O_DIRECTORY);
    n = scandirat(fd, "empty", &list, NULL, alphasort);
    printf("scandirat: %d\n", n);
    for (int i = 0; i < n; i++) {
        printf("  %s\n", list[i]->d_name);
        free(list[i]);
    }
    free(list);
    say("scandirat of nothing", scandirat(fd, "nothing", &list, NULL, NULL));
}

/* The time of last access is seen to change, where it does, however freshly it was asked for before. */
static void accessed(const char *path)
{
    struct stat before, after;
    struct timespec old[2] = { { 1000000000, 0 }, { 1100000000, 0 } };
    CHECK(utimensat(AT_FDCWD, path, old, 0) == 0);
    CHECK(stat(path, &before) == 0 && before.st_atime == 1000000000);
    DIR *d = must_open(path);
    rest(d);
    forget();
    closedir(d);
    CHECK(stat(path, &after) == 0);
    printf("atime %s, mtime %ld\n", after.st_atime == 1000000000 ? "stays" : "changes", (long)after.st_mtime);
}

/* --- life --- */

static void forked(const char *path)
{
    int status;
    DIR *d = must_open(path), *other = must_open(path);
    for (int i = 0; i < 4; i++)
        note(readdir(d)->d_name);
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        rest(d);
        report("the child");
        rewinddir(d);
        rest(d);
        report("the child again");
        CHECK(closedir(d) == 0);
        rest(other);
        report("the child, another");
        CHECK(closedir(other) == 0);
        fflush(stdout);
        _exit(0);
    }
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    /* Natively the two share a position; here the parent goes back for that. */
    rewinddir(d);
    forget();
    rest(d);
    report("the parent");
    closedir(d);
    closedir(other);
}

static void removed(const char *path)
{
    char full[9000];
    snprintf(full, sizeof full, "%s/goes", path);
    CHECK(mkdir(full, 0755) == 0);
    DIR *d = must_open(full), *held = must_open(full);
    CHECK(dirfd(held) >= 0);
    CHECK(rmdir(full) == 0);
    rest(d);
    report("a removed directory");
    rest(held);
    report("with a descriptor");
    closedir(d);
    closedir(held);
}

static void moved(const char *path)
{
    CHECK(chdir(path) == 0);
    DIR *d = must_open("sub");
    note(readdir(d)->d_name);
    CHECK(chdir("/") == 0);
    struct stat st;
    CHECK(fstatat(dirfd(d), "inside", &st, 0) == 0);
    rest(d);
    report("after chdir");
    closedir(d);
    CHECK(chdir(path) == 0);
    CHECK(d = opendir("sub"));
    CHECK(rename("sub", "elsewhere") == 0);
    rest(d);
    report("after a rename");
    CHECK(rename("elsewhere", "sub") == 0);
    closedir(d);
}

static void other_user(const char *path)
{
    char full[9000];
    snprintf(full, sizeof full, "%s/private", path);
    DIR *d = must_open(full);
    note(readdir(d)->d_name);
    CHECK(setegid(65534) == 0 && seteuid(65534) == 0);
    errno = 0;
    printf("opendir as nobody: %p %s\n", (void *)opendir(full), strerrorname_np(errno));
    rest(d);
    report("begun as root");
    rewinddir(d);
    rest(d);
    report("rewound");
    CHECK(seteuid(0) == 0 && setegid(0) == 0);
    rewinddir(d);
    rest(d);
    report("as root again");
    CHECK(closedir(d) == 0);
}

static DIR *shared;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static void *reader(void *arg)
{
    struct dirent *e;
    (void)arg;
    /* An entry is good until the next call: the name is taken by position. */
    for (;;) {
        pthread_mutex_lock(&lock);
        e = readdir(shared);
        if (e)
            note(e->d_name);
        pthread_mutex_unlock(&lock);
        if (!e)
            return NULL;
    }
}
static void *racer(void *arg)
{
    long n = 0;
    (void)arg;
    while (readdir(shared))
        n++;
    return (void *)n;
}

static void threads(const char *path)
{
    pthread_t thread[8];
    void *n;
    long sum = 0;
    shared = must_open(path);
    for (int i = 0; i < 8; i++)
        pthread_create(&thread[i], NULL, reader, NULL);
    for (int i = 0; i < 8; i++)
        pthread_join(thread[i], NULL);
    report("eight readers");
    rewinddir(shared);
    for (int i = 0; i < 8; i++)
        pthread_create(&thread[i], NULL, racer, NULL);
    for (int i = 0; i < 8; i++) {
        pthread_join(thread[i], &n);
        sum += (long)n;
    }
    printf("eight racers: %ld entries\n", sum);
    closedir(shared);
}

static void many(const char *path)
{
    static DIR *open[150];
    struct dirent *e;
    for (int i = 0; i < 150; i++)
        open[i] = must_open(path);
    for (int more = 1; more;) {
        more = 0;
        for (int i = 0; i < 150; i++) {
            e = readdir(open[i]);
            if (e && i == 149)
                note(e->d_name);
            more |= e != NULL;
        }
    }
    for (int i = 0; i < 150; i++)
        CHECK(closedir(open[i]) == 0);
    report("the last of many");
}

static DIR *handlers;
static volatile int handled, odd;
static void handler(int number)
{
    int before = errno, n = 0;
    (void)number;
    rewinddir(handlers);
    while (readdir(handlers))
        n++;
    odd |= n != 3;
    handled++;
    errno = before;
}

static void interrupted(const char *path)
{
    char full[9000];
    snprintf(full, sizeof full, "%s/sub", path);
    handlers = must_open(full);
    struct sigaction act = { .sa_handler = handler, .sa_flags = SA_RESTART };
    sigaction(SIGALRM, &act, NULL);
    struct itimerval every = { { 0, 500 }, { 0, 500 } };
    setitimer(ITIMER_REAL, &every, NULL);
    DIR *d = must_open(path);
    for (int i = 0; i < 200 || handled < 20; i++) {
        rewinddir(d);
        forget();
        rest(d);
    }
    setitimer(ITIMER_REAL, &(struct itimerval){ 0 }, NULL);
    report("interrupted");
    printf("handlers went wrong: %d\n", odd);
    closedir(d);
}

/* Every name that begins with "stable" is listed exactly once, as often as asked. */
static void steady(const char *path, int times, int expected)
{
    struct dirent *e;
    for (int i = 0; i < times; i++) {
        DIR *d = must_open(path);
        while ((e = readdir(d)))
            if (!strncmp(e->d_name, "stable", 6))
                note(e->d_name);
        closedir(d);
        digest();
        for (int j = 1; j < count; j++)
            if (!strcmp(names[j - 1], names[j]))
                printf("twice: %s\n", names[j]);
        if (count != expected)
            printf("listed %d of %d\n", count, expected);
        forget();
    }
    printf("done\n");
}

/* Says so when a stream is open, waits for a line, and goes on from the beginning. */
static void abandoned(const char *path)
{
    DIR *d = must_open(path);
    CHECK(readdir(d));
    printf("open\n");
    fflush(stdout);
    getchar();
    rewinddir(d);
    errno = 0;
    CHECK(readdir(d) == NULL);
    printf("%s\n", errno == ENOTCONN || errno == ECONNABORTED ? "not connected" : strerrorname_np(errno));
    closedir(d);
}

int main(int argc, char **argv)
{
    static const struct { const char *name; void (*run)(const char *); } all[] = {
        { "entries", entries }, { "errors", errors }, { "positions", positions }, { "reentrant", reentrant },
        { "descriptor", descriptor }, { "of_descriptor", of_descriptor }, { "directly", directly }, { "scan", scan },
        { "forked", forked }, { "removed", removed }, { "moved", moved }, { "other_user", other_user },
        { "accessed", accessed }, { "threads", threads }, { "many", many }, { "interrupted", interrupted }, { "abandoned", abandoned },
    };
    if (argc == 5 && !strcmp(argv[1], "steady")) {
        steady(argv[2], atoi(argv[3]), atoi(argv[4]));
        return 0;
    }
    for (unsigned i = 0; i < sizeof all / sizeof *all; i++)
        if (argc == 3 && !strcmp(argv[1], all[i].name)) {
            all[i].run(argv[2]);
            return 0;
        }
    fprintf(stderr, "what?\n");
    return 2;
}
