/* Calls at the edges of their contracts: pointers, flags, closing everything, streams, trees. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#define SHOW(call)                                   \
    do {                                             \
        errno = 0;                                   \
        long result = (long)(call);                  \
        printf("%s: %ld %d\n", #call, result, errno); \
    } while (0)

static int visit(const char *path, const struct stat *found, int type, struct FTW *at)
{
    struct stat here;
    printf("visit %s %d\n", path, stat(path + at->base, &here) == 0 && here.st_ino == found->st_ino);
    return type == FTW_NS;
}

static int in_child(int (*child)(void))
{
    int status;
    fflush(stdout);
    pid_t pid = fork();
    if (!pid)
        _exit(child());
    waitpid(pid, &status, 0);
    return status;
}

static int lowest_is_three(void) { return open("/", O_RDONLY) != 3; }
static int closes_from(void) { closefrom(3); return lowest_is_three(); }
static int closes_range(void) { return close_range(3, ~0u, 0) || lowest_is_three(); }
static int closes_each(void)
{
    for (int fd = 3; fd < sysconf(_SC_OPEN_MAX); fd++)
        close(fd);
    return lowest_is_three();
}

int main(int argc, char **argv)
{
    struct stat st;
    char small[4];
    void *unmapped = (void *)0xdeadc0deUL, *kernels = (void *)-4096L;
    struct timeval wrong[2] = {{0, 1000000}, {0, 0}};
    if (argc < 2 || chdir(argv[1]))
        return 2;

    SHOW(stat(0, &st));
    SHOW(stat(unmapped, &st));
    SHOW(stat(kernels, &st));
    SHOW(stat(".", kernels));
    SHOW(open(0, O_RDONLY));
    SHOW(stat("", &st));
    SHOW(fstatat(AT_FDCWD, "", &st, AT_EMPTY_PATH));
    SHOW(fstatat(AT_FDCWD, ".", &st, 0x40000000));
    SHOW(fstatat(-1, "x", &st, 0));
    SHOW(fstat(-1, &st));
    SHOW(close(-1));
    SHOW(close(70000));
    SHOW(dup2(70000, 5));
    SHOW(utimes(".", wrong));
    SHOW(mkdir("d", 0777));
    SHOW(close(creat("d/f", 0666)));
    SHOW(symlink("f", "d/l"));
    SHOW(symlink("", "d/e"));
    SHOW(readlink("d/l", small, 0));
    SHOW(readlink("d/l", small, sizeof small));
    SHOW(access("d/f", 9));
    SHOW(faccessat(AT_FDCWD, "d/l", R_OK, AT_SYMLINK_NOFOLLOW));
    SHOW(renameat2(AT_FDCWD, "d/f", AT_FDCWD, "d/l", RENAME_NOREPLACE));
    SHOW(unlinkat(AT_FDCWD, "d", 0));
    SHOW(remove("d"));
    SHOW(truncate("d/f", -1));

    SHOW(in_child(closes_from));
    SHOW(in_child(closes_range));
    SHOW(in_child(closes_each));

    SHOW(nftw("d", visit, 4, FTW_CHDIR | FTW_PHYS));
    SHOW(nftw("d", visit, 4, FTW_PHYS));
    SHOW(stat("d/f", &st));

    FILE *stream = fopen("d/f", "w");
    SHOW(fputs("12345", stream) < 0);
    SHOW(fclose(stream));
    stream = fopen("d/f", "a");
    SHOW(ftell(stream));
    stream = freopen("d/g", "wx", stream);
    SHOW(stream == 0);
    SHOW(fclose(stream));
    SHOW(fopen("d/g", "wx") != 0);
    SHOW(fopen("d/g", "?") != 0);
    SHOW(fopen(0, "r") != 0);

    int directory = open("d", O_RDONLY | O_DIRECTORY);
    int other = fcntl(directory, F_DUPFD, 100);
    SHOW(other);
    SHOW(close(directory));
    SHOW(fstatat(other, "f", &st, 0));
    SHOW(chdir("/"));
    SHOW(fchdir(other));
    SHOW(unlink("f") | unlink("g") | unlink("l") | chdir(".."));
    SHOW(rmdir("d"));
    SHOW(close(other));
    SHOW(fstatat(other, "f", &st, 0));
    errno = 77;
    printf("%d %d\n", stat(".", &st), errno);
    return 0;
}
