/* A round of ordinary file calls below the current directory, or below `root`, each checked. */
#ifndef WORK_H
#define WORK_H
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Number of the line that went wrong; 0 if none did. `tag` keeps those who work at the same time apart. */
static int work_at(const char *root, const char *tag) {
    char name[400], other[400], buffer[16];
    struct stat one, two;
    snprintf(name, sizeof name, "%s/w-%s", root, tag);
    snprintf(other, sizeof other, "%s/v-%s", root, tag);
    unlink(name);
    unlink(other);
    int fd = open(name, O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC, 0640);
    if (fd < 0) return __LINE__;
    if (write(fd, "contents", 8) != 8) return __LINE__;
    if (fstat(fd, &one) || one.st_size != 8) return __LINE__;
    if (stat(name, &two) || one.st_ino != two.st_ino || one.st_dev != two.st_dev) return __LINE__;
    if (rename(name, other)) return __LINE__;
    if (stat(name, &two) != -1 || errno != ENOENT) return __LINE__;
    if (pread(fd, buffer, sizeof buffer, 3) != 5 || memcmp(buffer, "tents", 5)) return __LINE__;
    if (close(fd)) return __LINE__;
    fd = open(other, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || read(fd, buffer, 4) != 4 || memcmp(buffer, "cont", 4)) return __LINE__;
    if (close(fd)) return __LINE__;
    if (access(other, R_OK) || chmod(other, 0600)) return __LINE__;
    if (mkdir(name, 0700) || rmdir(name)) return __LINE__;
    if (unlink(other)) return __LINE__;
    return 0;
}

/* The same without standard input and output, for signal handlers and small stacks. */
static int brief_work(const char *name) {
    char buffer[4];
    struct stat stat1;
    int before = errno, bad = 0;
    int fd = open("f1", O_RDONLY | O_CLOEXEC);
    if (fd < 0 || read(fd, buffer, 4) != 4 || memcmp(buffer, "cont", 4)) bad = __LINE__;
    if (fd >= 0 && close(fd)) bad = __LINE__;
    if (stat("sub/f2", &stat1) || stat1.st_size != 9) bad = __LINE__;
    fd = open(name, O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0600);
    if (fd < 0 || write(fd, "x", 1) != 1 || close(fd)) bad = __LINE__;
    if (unlink(name)) bad = __LINE__;
    errno = before;
    return bad;
}
#endif
