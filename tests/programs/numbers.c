/* Descriptor numbers: closing all, using fixed ones, running out of them. */
#include "work.h"
#include <dirent.h>
#include <pthread.h>
#include <sys/resource.h>

extern void closefrom(int);

static int opened[5];

static void open_some(void) {
    for (int i = 0; i < 5; i++) opened[i] = open(i % 2 ? "f1" : "sub", O_RDONLY);
}

static void report(const char *what, int closed) {
    printf("%s: %d closed, work %d, next number %d\n", what, closed, work_at(".", "numbers"),
           open("f1", O_RDONLY));
    close(3);
}

static void close_all(void) {
    report("before", 0);
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    int closed = 0;
    open_some();
    for (int fd = 3; fd < (int)limit.rlim_cur; fd++) closed += close(fd) == 0;
    report("loop", closed);

    open_some();
    report("close_range", close_range(3, ~0U, 0));
    open_some();
    close_range(3, ~0U, CLOSE_RANGE_CLOEXEC);
    closed = 0;
    for (int i = 0; i < 5; i++) closed += fcntl(opened[i], F_GETFD);
    for (int i = 0; i < 5; i++) close(opened[i]);
    report("close_range, marked", closed);
    open_some();
    closefrom(3);
    report("closefrom", 0);

    open_some();
    DIR *list = opendir("/proc/self/fd");
    struct dirent *entry;
    while ((entry = readdir(list))) {
        int fd = atoi(entry->d_name);
        if (fd > 2 && fd != dirfd(list)) close(fd);
    }
    closedir(list);
    closed = 0;
    for (int i = 0; i < 5; i++) closed += fcntl(opened[i], F_GETFD) < 0;
    report("/proc/self/fd", closed);
    struct stat seen;
    closed = 0;
    for (int fd = 3; fd < (int)limit.rlim_cur; fd++) closed += fstat(fd, &seen) == 0;
    report("open by fstat", closed);
    closed = 0;
    for (int fd = 3; fd < (int)limit.rlim_cur; fd++) closed += fcntl(fd, F_GETFL) >= 0;
    report("open by fcntl", closed);
}

/* Takes every number up to 1000, the library's own among them. */
static void fixed(void) {
    report("before", 0);
    int file = open("f1", O_RDONLY), bad = 0;
    char buffer[4];
    for (int fd = 5; fd < 1000; fd++) {
        if (dup2(file, fd) != fd) bad = fd;
        else if (fd % 50 == 0 && work_at(".", "fixed")) bad = fd;
        else if (lseek(fd, 1, SEEK_SET) != 1 || read(fd, buffer, 4) != 4 || memcmp(buffer, "onte", 4)) bad = fd;
    }
    printf("dup2: %d\n", bad);
    printf("work with all of them open: %d\n", work_at(".", "fixed"));
    for (int fd = 5; fd < 1000; fd++) close(fd);
    for (int fd = 9; fd > 3; fd--) dup3(file, fd, O_CLOEXEC);
    printf("F_DUPFD: %d\n", fcntl(file, F_DUPFD, 4));
    closefrom(3);
    report("after", 0);
}

/* Fills the table up to a limit. */
static int fill(void) {
    int count = 0, fd;
    while ((fd = open("f1", O_RDONLY)) >= 0) count++;
    printf("errno %d\n", errno);
    return count;
}

static void full_table(const char *when) {
    struct stat seen;
    printf("%s: ", when);
    int count = fill();
    /* The library's own two descriptors may be below the limit. */
    printf("about right: %d\n", count >= 60 - 3 - 4 && count <= 60 - 3);
    printf("create: %d ", open("never", O_CREAT | O_WRONLY, 0600));
    printf("errno %d\n", errno);
    printf("truncate: %d ", open("sub/f2", O_WRONLY | O_TRUNC));
    printf("errno %d\n", errno);
    printf("fopen: %d ", fopen("never", "w") != NULL);
    printf("errno %d\n", errno);
    printf("nothing was made: %d\n", stat("never", &seen) == -1 && errno == ENOENT);
    printf("nothing was lost: %d\n", stat("sub/f2", &seen) == 0 ? (int)seen.st_size : -1);
    printf("rename %d, unlink %d\n", rename("f3", "f4"), unlink("f4"));
    close(open("f3", O_CREAT | O_WRONLY, 0600));
    for (int fd = 3; fd < 60; fd++) close(fd);
    close(open("f3", O_CREAT | O_WRONLY, 0600));
    printf("work: %d\n", work_at(".", "limit"));
}

static void limits(int before) {
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    if (!before) printf("work: %d\n", work_at(".", "limit"));
    limit.rlim_cur = 60;
    printf("setrlimit: %d\n", setrlimit(RLIMIT_NOFILE, &limit));
    full_table(before ? "limited from the first" : "limited while in use");
    /* What lies above a lowered limit stays open. */
    limit.rlim_cur = 10;
    setrlimit(RLIMIT_NOFILE, &limit);
    printf("work: %d\n", work_at(".", "limit"));
    report("ten", 0);
}

int main(int argc, char **argv) {
    if (!strcmp(argv[1], "close-all")) close_all();
    else if (!strcmp(argv[1], "fixed")) fixed();
    else if (!strcmp(argv[1], "limited")) limits(1);
    else if (!strcmp(argv[1], "limit")) limits(0);
    else return 97;
    return 0;
}
