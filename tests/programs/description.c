/* Threads and signal handlers that use one open file description at once, while it is promoted and without that. Exits with 0 if
 * what POSIX promises held; otherwise it says what did not. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

enum { RECORD = 64, RECORDS = 6000, THREADS = 4, LARGE = 3 << 20 };

static int file;
static atomic_int seen[RECORDS];
static atomic_int taken, stop;

static void fail(const char *what) {
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    exit(1);
}

static void check(int holds, const char *what) {
    if (!holds)
        fail(what);
}

/* Reads records until the end: each exactly once in all threads together, because the offset is shared. */
static void *read_records(void *number) {
    char record[RECORD];
    int fd = (intptr_t)number % 2 ? dup(file) : file;
    check(fd >= 0, "dup");
    for (;;) {
        ssize_t len = read(fd, record, sizeof record);
        check(len == 0 || len == RECORD, "a record is read in one piece");
        if (len == 0)
            break;
        int which = atoi(record);
        check(which >= 0 && which < RECORDS, "a record");
        atomic_fetch_add(&seen[which], 1);
        atomic_fetch_add(&taken, 1);
    }
    if (fd != file)
        close(fd);
    return NULL;
}

static void fill(const char *path) {
    char record[RECORD];
    file = open(path, O_RDWR | O_CREAT | O_TRUNC, 0644);
    check(file >= 0, "create");
    for (int which = 0; which < RECORDS; which++) {
        memset(record, ' ', sizeof record);
        snprintf(record, sizeof record, "%d", which);
        check(write(file, record, sizeof record) == RECORD, "fill");
    }
    check(lseek(file, 0, SEEK_SET) == 0, "seek");
}

static void all_once(void) {
    for (int which = 0; which < RECORDS; which++)
        check(atomic_load(&seen[which]) == 1, "each record is read once");
}

/* Promotes the description in the middle of it, if asked to. */
static void records(int promote) {
    pthread_t threads[THREADS];
    fill("records");
    for (intptr_t number = 0; number < THREADS; number++)
        pthread_create(&threads[number], NULL, read_records, (void *)number);
    if (promote) {
        while (atomic_load(&taken) < RECORDS / 4)
            usleep(100);
        check(flock(file, LOCK_EX) == 0, "lock");
    }
    for (int number = 0; number < THREADS; number++)
        pthread_join(threads[number], NULL);
    all_once();
}

static void *write_block(void *number) {
    char *block = malloc(LARGE);
    memset(block, 'a' + (int)(intptr_t)number, LARGE);
    check(write(file, block, LARGE) == LARGE, "a large write");
    free(block);
    return NULL;
}

/* Large writes at a shared offset lie one behind the other, whole; so do large reads. */
static void large(void) {
    pthread_t threads[THREADS];
    file = open("large", O_RDWR | O_CREAT | O_TRUNC, 0644);
    for (intptr_t number = 0; number < THREADS; number++)
        pthread_create(&threads[number], NULL, write_block, (void *)number);
    for (int number = 0; number < THREADS; number++)
        pthread_join(threads[number], NULL);
    check(lseek(file, 0, SEEK_CUR) == (off_t)THREADS * LARGE, "the offset after all writes");
    check(lseek(file, 0, SEEK_SET) == 0, "seek");
    char *block = malloc(LARGE);
    int found = 0;
    for (int number = 0; number < THREADS; number++) {
        check(read(file, block, LARGE) == LARGE, "a large read");
        for (int at = 1; at < LARGE; at++)
            check(block[at] == block[0], "blocks are not mixed");
        found |= 1 << (block[0] - 'a');
    }
    check(found == (1 << THREADS) - 1, "every block is there");
    check(read(file, block, LARGE) == 0, "the end");
}

static void *read_and_write(void *ignored) {
    char text[16];
    (void)ignored;
    for (int turn = 0; !atomic_load(&stop); turn++) {
        int fd = open("busy", O_RDWR | O_CREAT, 0644);
        check(fd >= 0, "open");
        int other = dup(fd);
        check(other >= 0, "dup");
        check(pwrite(fd, "0123456789", 10, 0) == 10, "write");
        check(pread(other, text, 10, 0) == 10, "read");
        check(memcmp(text, "0123456789", 10) == 0, "what was written");
        check(close(fd) == 0 && close(other) == 0, "close");
    }
    return NULL;
}

/* Forks while other threads open, duplicate, read, write and close. The children use what they share. */
static void forks(void) {
    pthread_t threads[THREADS];
    fill("forks");
    for (int number = 0; number < THREADS; number++)
        pthread_create(&threads[number], NULL, read_and_write, NULL);
    for (int turn = 0; turn < 20; turn++) {
        char record[RECORD];
        int fd = open("forks", O_RDONLY);
        check(fd >= 0 && read(fd, record, RECORD) == RECORD && atoi(record) == 0, "the first record");
        pid_t child = fork();
        check(child >= 0, "fork");
        if (child == 0)
            _exit(read(fd, record, RECORD) == RECORD && atoi(record) == 1 ? 0 : 1);
        int status;
        check(waitpid(child, &status, 0) == child && status == 0, "the child's record");
        check(read(fd, record, RECORD) == RECORD && atoi(record) == 2, "the record after the child's");
        close(fd);
    }
    atomic_store(&stop, 1);
    for (int number = 0; number < THREADS; number++)
        pthread_join(threads[number], NULL);
}

static volatile sig_atomic_t alarms;
static int log_file;

static void on_alarm(int number) {
    char text[8];
    int before = errno;
    (void)number;
    alarms++;
    if (pwrite(log_file, "alarm", 5, 0) != 5 || pread(file, text, 1, 0) != 1)
        _exit(3);
    if (alarms == 20 && flock(log_file, LOCK_EX) != 0)
        _exit(4);
    errno = before;
}

/* A handler that reads, writes and promotes, in the middle of calls on the same descriptions. */
static void handler(void) {
    fill("handled");
    log_file = open("log", O_RDWR | O_CREAT | O_TRUNC, 0644);
    struct sigaction action = {.sa_handler = on_alarm, .sa_flags = SA_RESTART};
    sigaction(SIGALRM, &action, NULL);
    struct itimerval each = {{0, 1000}, {0, 1000}}, none = {{0, 0}, {0, 0}};
    setitimer(ITIMER_REAL, &each, NULL);
    while (alarms < 200) {
        check(lseek(file, 0, SEEK_SET) == 0, "seek");
        for (int which = 0; which < RECORDS; which++) {
            char record[RECORD];
            check(read(file, record, RECORD) == RECORD, "read");
            check(atoi(record) == which, "the next record");
        }
        if (alarms > 100)
            check(flock(file, LOCK_EX) == 0, "lock");
    }
    setitimer(ITIMER_REAL, &none, NULL);
}

static void limit(rlim_t numbers) {
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = numbers;
    check(setrlimit(RLIMIT_NOFILE, &limit) == 0, "limit");
}

/* Promotion needs a number for a moment: where the program has none left, the library lends one of its own. Where that is of no
 * help, nothing is lost. */
static void numbers(void) {
    char text[8] = "";
    int status, next, last = -1;
    limit(128);
    file = open("numbers", O_RDWR | O_CREAT | O_TRUNC, 0644);
    check(write(file, "0123456789", 10) == 10 && lseek(file, 3, SEEK_SET) == 3, "fill");
    while ((next = open("numbers", O_RDONLY)) >= 0)
        last = next;
    check(errno == EMFILE && last > 100, "all numbers are in use");
    check(flock(file, LOCK_EX) == 0, "lock");
    check(read(file, text, 2) == 2 && memcmp(text, "34", 2) == 0, "the offset is kept");
    pid_t child = fork();
    check(child >= 0, "fork");
    if (child == 0)
        _exit(lseek(file, 0, SEEK_CUR) != 5 || lseek(last, 0, SEEK_CUR) != 0);
    check(waitpid(child, &status, 0) == child && status == 0, "a child has all files");
    check(flock(file, LOCK_UN) == 0 && close(last) == 0, "close");
    check(open("numbers", O_RDONLY) == last, "one number is enough for one file");
    limit(10);
    check(flock(last, LOCK_SH) == -1 && errno == EMFILE, "no number below the limit");
    check(read(last, text, 2) == 2 && memcmp(text, "01", 2) == 0, "read on");
    limit(128);
    check(flock(last, LOCK_SH) == 0 && lseek(last, 0, SEEK_CUR) == 2, "lock when there is a number");
    check(read(last, text, 2) == 2 && memcmp(text, "23", 2) == 0, "read after that");
}

/* The mount is taken out of the tree of names. What is open stays open, for children, too. */
static void detached(void) {
    char here[4096], text[8] = "";
    int status, other;
    file = open("detached", O_RDWR | O_CREAT | O_TRUNC, 0644);
    other = open("detached", O_RDONLY);
    check(write(file, "0123456789", 10) == 10 && lseek(file, 3, SEEK_SET) == 3, "fill");
    check(getcwd(here, sizeof here) != NULL && chdir("/") == 0, "leave");
    check(umount2(here, MNT_DETACH) == 0, "detach");
    check(read(file, text, 2) == 2 && memcmp(text, "34", 2) == 0, "read");
    check(flock(file, LOCK_EX) == 0, "lock");
    pid_t child = fork();
    check(child >= 0, "fork");
    if (child == 0)
        _exit(read(file, text, 2) != 2 || read(other, text + 2, 2) != 2 || memcmp(text, "5601", 4) != 0);
    check(waitpid(child, &status, 0) == child && status == 0, "a child reads on");
    check(lseek(other, 0, SEEK_CUR) == 2 && write(file, "end", 3) == 3, "offsets are shared");
}

int main(int count, char **arguments) {
    const char *what = count > 1 ? arguments[1] : "";
    if (strcmp(what, "records") == 0)
        records(0);
    else if (strcmp(what, "promoted") == 0)
        records(1);
    else if (strcmp(what, "large") == 0)
        large();
    else if (strcmp(what, "forks") == 0)
        forks();
    else if (strcmp(what, "handler") == 0)
        handler();
    else if (strcmp(what, "numbers") == 0)
        numbers();
    else if (strcmp(what, "detached") == 0)
        detached();
    else
        return 2;
    puts("held");
    return 0;
}
