/* What glibc does by calls of its own: streams, temporary files, realpath, glob, system calls by number. Says what it
 * got; run as `helpers STORY` in a directory with the files of tests/helpers.rs. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <fts.h>
#include <ftw.h>
#include <glob.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>
#include <utime.h>
#include <wchar.h>

#define SHOW(call)                                    \
    do {                                              \
        errno = 0;                                    \
        long result = (long)(call);                   \
        printf("%s: %ld %d\n", #call, result, result < 0 ? errno : 0); \
    } while (0)

static char here[PATH_MAX];

static const char *absolute(const char *relative)
{
    static char path[PATH_MAX * 2];
    snprintf(path, sizeof path, "%s/%s", here, relative);
    return path;
}

/* What a descriptor is, without what may differ: its number and the device. */
static void descriptor(const char *what, int fd)
{
    struct stat found;
    if (fd < 0) {
        printf("%s: %d\n", what, errno);
        return;
    }
    int flags = fcntl(fd, F_GETFL) & (O_ACCMODE | O_APPEND | O_NONBLOCK | O_SYNC | O_DIRECTORY);
    printf("%s: flags %x cloexec %d at %ld", what, flags, fcntl(fd, F_GETFD), (long)lseek(fd, 0, SEEK_CUR));
    if (fstat(fd, &found) == 0)
        printf(" mode %o size %ld links %d\n", found.st_mode, (long)found.st_size, (int)found.st_nlink);
    else
        printf(" fstat %d\n", errno);
}

/* --- streams --- */

static void put(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (write(fd, text, strlen(text)) < 0)
        perror(path);
    close(fd);
}

static void contents(const char *path)
{
    char text[4096];
    int fd = open(path, O_RDONLY), len = fd < 0 ? -1 : (int)read(fd, text, sizeof text);
    printf("  %s holds %d [%.*s]\n", path, len, len < 0 ? 0 : len, text);
    close(fd);
}

static void stream(const char *path, const char *mode)
{
    char what[300];
    errno = 0;
    FILE *file = fopen(path, mode);
    snprintf(what, sizeof what, "fopen %s %s", path, mode);
    if (!file) {
        printf("%s: %d\n", what, errno);
        return;
    }
    descriptor(what, fileno(file));
    char text[100] = "";
    size_t got = fread(text, 1, 5, file);
    printf("  read %zu %.5s error %d at %ld", got, text, !!ferror(file), ftell(file));
    clearerr(file);
    fseek(file, 0, SEEK_CUR);
    int put = fputs("more", file);
    printf(" put %d error %d", put >= 0, !!ferror(file));
    printf(" flush %d at %ld", fflush(file), ftell(file));
    printf(" close %d\n", fclose(file));
    contents(path);
}

static void streams(void)
{
    const char *modes[] = {"r", "rb", "r+", "rb+", "r+b", "re", "rm", "rc", "w", "w+", "wb", "wx", "w+x", "we", "a", "a+",
                           "ab+e", "ax", "r,ccs=UTF-8", "r,ccs=NONSENSE", "w,ccs=ISO-8859-1", "q", "", "+r", "rrrrrr+"};
    for (unsigned number = 0; number < sizeof modes / sizeof *modes; number++) {
        put("stream", "0123456789");
        stream("stream", modes[number]);
        unlink("stream");
        stream("stream", modes[number]);
        unlink("stream");
    }
    for (const char **mode = (const char *[]){"r", "w", "a", "r+", 0}; *mode; mode++) {
        stream("directory", *mode);
        stream("nowhere/file", *mode);
        stream("file/file", *mode);
        stream("dangling", *mode);
        unlink("nothing");
        stream("", *mode);
        stream("loop", *mode);
    }
    /* Wide characters by a character set of its own. */
    put("wide", "\xc3\xa4\xe2\x82\xac");
    FILE *file = fopen("wide", "r,ccs=UTF-8");
    wint_t first = fgetwc(file), second = fgetwc(file);
    printf("wide %x %x\n", first, second);
    fclose(file);

    put("first", "first file\n");
    put("second", "second file\n");
    file = fopen("first", "r");
    int before = fileno(file);
    char line[100];
    printf("%s", fgets(line, 4, file));
    file = freopen("second", "r+", file);
    printf("\nreopened %d %s", file && fileno(file) == before, fgets(line, sizeof line, file));
    descriptor("reopened", fileno(file));
    file = freopen(0, "a", file);
    printf("mode changed %d\n", file != 0);
    if (file) {
        struct stat one, other;
        fstat(fileno(file), &one);
        stat("second", &other);
        printf("same file %d\n", one.st_dev == other.st_dev && one.st_ino == other.st_ino);
        fprintf(file, "third\n");
        printf("closed %d\n", fclose(file));
    }
    contents("second");
    file = fopen("first", "r");
    printf("reopened what is not there %d", freopen("nowhere/file", "r", file) == 0);
    printf(" %d\n", errno);
    file = freopen("third", "w", fopen("first", "r"));
    fprintf(file, "to the third\n");
    fclose(file);
    contents("third");

    int fd = open("first", O_RDWR | O_APPEND);
    file = fdopen(fd, "r+");
    printf("fdopen %d %d\n", fileno(file) == fd, fileno_unlocked(file) == fd);
    fseek(file, 6, SEEK_SET);
    printf("%s", fgets(line, sizeof line, file));
    fseek(file, 0, SEEK_CUR);
    fputs("appended\n", file);
    fclose(file);
    contents("first");
    fd = open("first", O_RDONLY);
    errno = 0;
    printf("fdopen for writing what is open for reading: %d %d\n", fdopen(fd, "w") == 0, errno);
    close(fd);
    FILE *temporary = tmpfile();
    fputs("unnamed", temporary);
    rewind(temporary);
    printf("tmpfile %s\n", fgets(line, sizeof line, temporary));
    fclose(temporary);
    /* A stream that is inherited with what it has not flushed. */
    file = fopen("forked", "w");
    fputs("parent ", file);
    fflush(file);
    if (fork() == 0) {
        fputs("child ", file);
        fclose(file);
        _exit(0);
    }
    wait(0);
    fputs("parent again", file);
    fclose(file);
    contents("forked");
}

/* --- temporary files --- */

static void temporary(void)
{
    umask(022);
    for (int round = 0; round < 8; round++) {
        char template[200], before[200];
        const char *templates[] = {"tXXXXXX", absolute("tXXXXXX"), "directory/XXXXXX", "nowhere/tXXXXXX", "file/XXXXXX",
                                   "tXXXXX", "", "XXXXXXt"};
        strcpy(template, strcpy(before, templates[round]));
        errno = 7;
        int fd = mkstemp(template);
        printf("errno kept %d ", errno == 7);
        descriptor("mkstemp", fd);
        printf("  %d changed %d length kept %d\n", strncmp(template, before, strlen(before) < 6 ? 0 : strlen(before) - 6),
               strcmp(template, before) != 0, strlen(template) == strlen(before));
        if (fd >= 0) {
            printf("  there: %d removed: %d\n", access(template, F_OK), unlink(template));
            close(fd);
        }
        strcpy(template, before);
        errno = 7;
        char *directory = mkdtemp(template);
        printf("mkdtemp %d errno %d", directory == template, errno);
        if (directory) {
            struct stat found;
            stat(template, &found);
            printf(" mode %o removed %d", found.st_mode, rmdir(template));
        }
        printf("\n");
        strcpy(template, before);
        errno = 7;
        printf("mktemp %d", mktemp(template) == template);
        printf(" %zu\n", strlen(template));
    }
    char template[100];
    descriptor("mkostemp", mkostemp(strcpy(template, "oXXXXXX"), O_APPEND | O_CLOEXEC | O_RDONLY));
    unlink(template);
    descriptor("mkstemps", mkstemps(strcpy(template, "sXXXXXX.c"), 2));
    printf("  %d %s\n", (int)strlen(template), template + 7);
    unlink(template);
    descriptor("mkostemps", mkostemps(strcpy(template, "sXXXXXX.tar"), 4, O_SYNC));
    unlink(template);
    descriptor("suffix too long", mkstemps(strcpy(template, "sXXXXXX.c"), 5));
    descriptor("suffix negative", mkstemps(strcpy(template, "sXXXXXX.c"), -1));
    descriptor("suffix elsewhere", mkostemps(strcpy(template, "sXXXXXX.c"), 1, 0));
    char *name = tempnam(here, "pre");
    printf("tempnam %d %d\n", strncmp(name, here, strlen(here)), access(name, F_OK));
    free(name);
    /* All different, all there. */
    int made = 0;
    for (int round = 0; round < 100; round++) {
        int fd = mkstemp(strcpy(template, "many/XXXXXX"));
        made += fd >= 0;
        close(fd);
    }
    int found = 0;
    DIR *directory = opendir("many");
    while (readdir(directory))
        found++;
    closedir(directory);
    printf("made %d found %d\n", made, found - 2);
}

/* --- paths --- */

static void resolve_one(const char *path)
{
    char buffer[PATH_MAX];
    strcpy(buffer, "untouched");
    errno = 0;
    char *resolved = realpath(path, buffer);
    printf("%.60s (%zu): %s %d buffer %s\n", path, strlen(path), resolved ? resolved : "-", resolved ? 0 : errno,
           resolved || errno == ENOENT || errno == EACCES ? buffer : "-");
    errno = 0;
    char *again = realpath(path, 0), *gnu = canonicalize_file_name(path);
    printf("  %s %s\n", again ? again : "-", gnu ? gnu : "-");
    free(again);
    free(gnu);
}

static void resolve(void)
{
    const char *paths[] = {"file", ".", "..", "../..", "./file", "directory/../file", "directory/", "file/", "file/.", "file/..",
                           "file/x", "directory//inner", "directory/inner/.", "link", "dirlink", "dirlink/", "dirlink/..",
                           "dirlink/../file", "dirlink/inner", "dangling", "dangling/x", "dangling/..", "loop", "loop/x",
                           "nowhere", "nowhere/..", "nowhere/x", "directory/nowhere", "absolute", "absolute/inner", "chain0",
                           "chain39", "chain40", "chain41", "fifo", "", "/", "//", "away", "away/passwd", "away/nowhere", "up", "up/..",
                           "deep/a/b/c", "deep/a/../a/b/./c/../../b/c/last", "directory/./../directory/../file"};
    for (unsigned number = 0; number < sizeof paths / sizeof *paths; number++) {
        resolve_one(paths[number]);
        if (*paths[number])
            resolve_one(absolute(paths[number]));
    }
    static char longer[PATH_MAX * 2];
    for (int length = 900; length < 5000; length += 150) {
        memset(longer, 0, sizeof longer);
        while ((int)strlen(longer) < length)
            strcat(longer, "directory/../");
        resolve_one(strcat(longer, "file"));
    }
    memset(longer, 'n', 300);
    longer[300] = 0;
    resolve_one(longer);
    errno = 0;
    printf("null %d", realpath(0, 0) == 0);
    printf(" %d\n", errno);
    /* From a directory below, and from one that is gone. */
    if (chdir("deep/a/b") == 0) {
        resolve_one("c/last");
        resolve_one("../../../file");
        resolve_one("..");
    }
}

/* --- the current directory, limits --- */

static void place(void)
{
    static char longer[PATH_MAX * 2];
    char moves[PATH_MAX * 2];
    /* Directories in which somebody is are moved and removed. */
    if (mkdir("outer", 0755) == 0 && mkdir("outer/inner", 0755) == 0 && chdir("outer/inner") == 0) {
        strcpy(moves, absolute("outer"));
        SHOW(rename(moves, absolute("renamed")));
        printf("%s\n", getcwd(longer, sizeof longer));
        strcpy(moves, absolute("renamed"));
        SHOW(rename(moves, absolute("directory/below")));
        printf("%s\n", getcwd(longer, sizeof longer));
        if (chdir(here) == 0) {
            SHOW(rmdir("directory/below/inner"));
            SHOW(rmdir("directory/below"));
        }
    }
    if (chdir(here) == 0 && mkdir("gone", 0755) == 0 && chdir("gone") == 0) {
        rmdir(absolute("gone"));
        resolve_one("x");
        resolve_one(".");
        printf("getcwd %d", getcwd(longer, sizeof longer) == 0);
        printf(" %d\n", errno);
    }
    if (chdir(here) == 0 && mkdir("moves", 0755) == 0 && chdir("moves") == 0) {
        printf("%s\n", getcwd(longer, sizeof longer));
        strcpy(moves, absolute("moves"));
        SHOW(rename(moves, absolute("moved")));
        printf("%s\n", getcwd(longer, sizeof longer));
        resolve_one(".");
        char *name = get_current_dir_name();
        printf("%s\n", name);
        free(name);
        printf("%s %d\n", getcwd(longer, 3) ? "?" : "-", errno);
        if (chdir(".."))
            perror("..");
        SHOW(rmdir("moved"));
    }
    for (int name = 0; name < 10; name++) {
        errno = 0;
        long value = pathconf("file", name);
        int fd = open("file", O_RDONLY);
        printf("pathconf %d %d", name, value == fpathconf(fd, name));
        printf(name == _PC_NAME_MAX || name == _PC_PATH_MAX ? " %ld\n" : "\n", value);
        close(fd);
    }
    SHOW(pathconf("nowhere", _PC_NAME_MAX));
}

/* --- patterns --- */

static int unreadable(const char *path, int error)
{
    printf("  cannot read %s: %d\n", path, error);
    return 0;
}

static int opened;
static void *own_open(const char *path)
{
    opened++;
    return opendir(path);
}

static void pattern(const char *text, int flags)
{
    glob_t found;
    memset(&found, 0x5a, sizeof found);
    found.gl_offs = 2;
    int result = glob(text, flags, unreadable, &found);
    printf("glob %s %x: %d", text, flags, result);
    if (result == 0) {
        printf(" %zu flags %x functions kept %d", found.gl_pathc, found.gl_flags, (long)found.gl_stat == 0x5a5a5a5a5a5a5a5a);
        char **path = found.gl_pathv + (flags & GLOB_DOOFFS ? 2 : 0);
        for (size_t number = 0; number < found.gl_pathc; number++)
            printf(" %s", path[number]);
        globfree(&found);
    }
    printf("\n");
}

static void globs(void)
{
    const char *patterns[] = {"*", "d*", "deep/*/b/*", "*/*", "dirlink/*", ".*", "f?l[ea]", "nothing*", "file", "nowhere", "dangling",
                              "dang*", "loop", "directory/", "d*/", "*/", "{file,directory,nowhere}", "~nobody-of-this-name", "\\file",
                              "[", "deep/**/c", "l*k", ""};
    const int flags[] = {0, GLOB_MARK, GLOB_NOSORT, GLOB_NOCHECK, GLOB_DOOFFS, GLOB_PERIOD, GLOB_ONLYDIR, GLOB_BRACE, GLOB_NOMAGIC,
                         GLOB_TILDE, GLOB_NOESCAPE, GLOB_TILDE_CHECK, GLOB_MARK | GLOB_BRACE | GLOB_ERR};
    for (unsigned number = 0; number < sizeof patterns / sizeof *patterns; number++)
        for (unsigned kind = 0; kind < sizeof flags / sizeof *flags; kind++) {
            if (flags[kind] & GLOB_NOSORT)
                continue;
            pattern(patterns[number], flags[kind]);
            if (*patterns[number] && kind < 2)
                pattern(absolute(patterns[number]), flags[kind]);
        }
    glob_t both;
    memset(&both, 0, sizeof both);
    printf("append %d %d", glob("f*", 0, 0, &both), glob("d*", GLOB_APPEND, 0, &both));
    for (size_t number = 0; number < both.gl_pathc; number++)
        printf(" %s", both.gl_pathv[number]);
    globfree(&both);
    memset(&both, 0, sizeof both);
    both.gl_opendir = own_open;
    both.gl_readdir = (struct dirent * (*)(void *)) readdir;
    both.gl_closedir = (void (*)(void *))closedir;
    both.gl_stat = stat;
    both.gl_lstat = lstat;
    printf("\nof its own %d", glob("deep/a/*", GLOB_ALTDIRFUNC, 0, &both));
    printf(" opened %d flags %x kept %d\n", opened > 0, both.gl_flags, both.gl_opendir == own_open);
    globfree(&both);
}

/* --- trees --- */

static int visits;
static int visit(const char *path, const struct stat *found, int type)
{
    visits++;
    return strstr(path, "last") ? 0 : 0 * found->st_mode * type;
}

static int visit_more(const char *path, const struct stat *found, int type, struct FTW *at)
{
    struct stat named;
    visits += type;
    return lstat(path + (visits < 0 ? at->base : 0), &named) != 0 && found == 0;
}

static int by_name(const FTSENT **one, const FTSENT **other)
{
    return strcmp((*one)->fts_name, (*other)->fts_name);
}

static void trees(void)
{
    SHOW(ftw("deep", visit, 5));
    SHOW(ftw("nowhere", visit, 5));
    SHOW(nftw(".", visit_more, 5, FTW_PHYS));
    SHOW(nftw(here, visit_more, 2, FTW_DEPTH | FTW_MOUNT | FTW_PHYS));
    printf("visits %d\n", visits);
    for (int options = 0; options < 2; options++) {
        FTS *tree = fts_open((char *[]){"deep", "directory", 0}, FTS_PHYSICAL | (options ? FTS_NOCHDIR : 0), by_name);
        for (FTSENT *entry; (entry = fts_read(tree));) {
            struct stat named;
            printf("%s %d %d %d\n", entry->fts_path, entry->fts_info, entry->fts_level, stat(entry->fts_accpath, &named));
        }
        SHOW(fts_close(tree));
        SHOW(access("file", R_OK));
    }
}

/* --- extended attributes --- */

static void attributes(void)
{
    char value[100], large[70000];
    memset(large, 'v', sizeof large);
    SHOW(setxattr("file", "user.one", "first", 5, 0));
    SHOW(setxattr("file", "user.one", "again", 5, XATTR_CREATE));
    SHOW(setxattr("file", "user.none", "again", 5, XATTR_REPLACE));
    SHOW(setxattr("file", "user.one", "replaced", 8, XATTR_REPLACE));
    SHOW(setxattr("file", "user.empty", "", 0, XATTR_CREATE));
    SHOW(setxattr("file", "user.null", 0, 0, 0));
    SHOW(setxattr(absolute("link"), "user.link", "through", 7, 0));
    SHOW(lsetxattr("link", "user.link", "itself", 6, 0));
    SHOW(lsetxattr("directory", "user.dir", "directory", 9, 0));
    SHOW(setxattr("nowhere", "user.one", "x", 1, 0));
    SHOW(setxattr("file/x", "user.one", "x", 1, 0));
    SHOW(setxattr("loop", "user.one", "x", 1, 0));
    SHOW(setxattr("file", "user.one", "x", 1, 77));
    SHOW(setxattr("file", "", "x", 1, 0));
    SHOW(setxattr("file", "nonsense", "x", 1, 0));
    SHOW(setxattr("file", "user.", "x", 1, 0));
    SHOW(setxattr("file", "user.large", large, sizeof large, 0));
    SHOW(setxattr("file", "user.wild", (void *)8, 5, 0));
    SHOW(setxattr("file", (void *)8, "x", 1, 0));
    SHOW(setxattr("", "user.one", "x", 1, 0));
    memset(value, 'n', sizeof value);
    char name[300] = "user.";
    memset(name + 5, 'n', 290);
    SHOW(setxattr("file", name, "x", 1, 0));
    SHOW(readlink("link", (char *)value, 0));
    SHOW(readlink("nowhere", (char *)value, 0));
    SHOW(readlink("file", (char *)value, sizeof value));
    SHOW(readlink("directory", (char *)value, 1));
    SHOW(readlink("link", (char *)value, sizeof value));
    SHOW(getxattr("file", "user.one", value, sizeof value));
    printf("  %.8s\n", value);
    SHOW(getxattr("link", "user.link", value, sizeof value));
    SHOW(getxattr("file", "user.empty", value, sizeof value));
    SHOW(getxattr("directory", "user.dir", value, 3));
    SHOW(listxattr("file", 0, 0));
    SHOW(removexattr("file", "user.one"));
    SHOW(removexattr("file", "user.one"));
    SHOW(removexattr("link", "user.link"));
    SHOW(lremovexattr("directory", "user.dir"));
    SHOW(lremovexattr("link", "user.link"));
    SHOW(removexattr("nowhere", "user.one"));
    SHOW(removexattr("file", ""));
    SHOW(removexattr("file", name));
    SHOW(getxattr("file", "user.one", value, sizeof value));
    SHOW(listxattr("file", 0, 0));
    SHOW(removexattr("file", "user.empty"));
    SHOW(removexattr("file", "user.null"));
    SHOW(listxattr("file", 0, 0));
}

static void modes(void)
{
    struct stat found;
    SHOW(fchmodat(AT_FDCWD, "file", 0640, AT_SYMLINK_NOFOLLOW));
    SHOW((stat("file", &found), found.st_mode));
    SHOW(fchmodat(AT_FDCWD, "link", 0600, AT_SYMLINK_NOFOLLOW));
    SHOW(fchmodat(AT_FDCWD, "directory", 0711, AT_SYMLINK_NOFOLLOW));
    SHOW((stat("directory", &found), found.st_mode));
    SHOW(fchmodat(AT_FDCWD, "nowhere", 0600, AT_SYMLINK_NOFOLLOW));
    SHOW(fchmodat(AT_FDCWD, "dangling", 0600, AT_SYMLINK_NOFOLLOW));
    SHOW(fchmodat(AT_FDCWD, "file", 0600, 0x10000));
    SHOW(lchmod("file", 0604));
    SHOW((stat("file", &found), found.st_mode));
    SHOW(lchmod("link", 0604));
    SHOW(fchmodat(AT_FDCWD, "link", 0644, 0));
    SHOW((stat("file", &found), found.st_mode));
    /* Names of old programs, which nothing can be linked against any more. */
    int (*xmknod)(int, const char *, mode_t, dev_t *) = dlsym(RTLD_DEFAULT, "__xmknod");
    int (*xmknodat)(int, int, const char *, mode_t, dev_t *) = dlsym(RTLD_DEFAULT, "__xmknodat");
    int (*xstat)(int, const char *, struct stat *) = dlsym(RTLD_DEFAULT, "__xstat");
    int (*old_open)(const char *, int, ...) = dlsym(RTLD_DEFAULT, "__open");
    int (*old_open64)(const char *, int, ...) = dlsym(RTLD_DEFAULT, "__open64");
    FILE *(*old_fopen)(const char *, const char *) = dlsym(RTLD_DEFAULT, "_IO_fopen");
    int (*old_fclose)(FILE *) = dlsym(RTLD_DEFAULT, "_IO_fclose");
    int (*old_close)(int) = dlsym(RTLD_DEFAULT, "__close");
    int (*old_dup2)(int, int) = dlsym(RTLD_DEFAULT, "__dup2");
    int (*old_fcntl)(int, int, ...) = dlsym(RTLD_DEFAULT, "__fcntl");
    int (*old_statfs)(const char *, struct statfs *) = dlsym(RTLD_DEFAULT, "__statfs");
    dev_t device = 0;
    struct statfs system;
    if (xmknod) {
        SHOW(xmknod(0, "old-fifo", S_IFIFO | 0600, &device));
        SHOW(xmknod(0, "old-file", S_IFREG | 0600, &device));
        SHOW(xmknod(9, "older-file", S_IFREG | 0600, &device));
        SHOW(xmknodat(0, AT_FDCWD, "old-fifo", S_IFIFO | 0600, &device));
        SHOW((xstat(1, "old-fifo", &found), found.st_mode));
        SHOW(unlink("old-file"));
        SHOW(unlink("old-fifo"));
    }
    descriptor("__open", old_open("file", O_RDONLY));
    descriptor("__open64", old_open64("made", O_RDWR | O_CREAT, 0600));
    SHOW(old_statfs("nowhere", &system));
    SHOW(old_statfs("file", &system));
    FILE *file = old_fopen("made", "r+");
    int fd = fileno(file), copy = dup(fd);
    SHOW(old_dup2(fd, copy) == copy);
    SHOW(old_fcntl(copy, F_GETFD));
    SHOW(old_close(copy));
    SHOW(old_fclose(file));
    SHOW(unlink("made"));
    SHOW(daemon(0, 1));
    /* In the root directory: nothing of ours. */
    SHOW(access("file", F_OK));
    SHOW((stat("/", &found), access(".", F_OK)));
    struct stat now;
    stat(".", &now);
    printf("at the root %d\n", now.st_ino == found.st_ino && now.st_dev == found.st_dev);
    put(absolute("daemon"), "done\n");
}

/* --- as somebody else --- */

static void stranger(void)
{
    char template[100];
    put("private/file", "secret");
    if (seteuid(65534))
        exit(3);
    resolve_one("private");
    resolve_one("private/file");
    resolve_one("private/nowhere/x");
    resolve_one("private/../file");
    resolve_one("private/");
    resolve_one("link");
    pattern("private/*", 0);
    pattern("private/*", GLOB_ERR);
    pattern("*/file", 0);
    stream("private/file", "r");
    stream("private/new", "w");
    stream("new", "w");
    stream("file", "r");
    stream("file", "r+");
    descriptor("mkstemp", mkstemp(strcpy(template, "tXXXXXX")));
    descriptor("mkstemp", mkstemp(strcpy(template, "private/tXXXXXX")));
    errno = 0;
    printf("mkdtemp %d", mkdtemp(strcpy(template, "tXXXXXX")) == 0);
    printf(" %d\n", errno);
    /* The real user is another. */
    SHOW(access("private/file", R_OK));
    SHOW(eaccess("private/file", R_OK));
    SHOW(euidaccess("file", W_OK));
    SHOW(faccessat(AT_FDCWD, "file", W_OK, AT_EACCESS));
    SHOW(faccessat(AT_FDCWD, "file", W_OK, 0));
    SHOW(syscall(SYS_faccessat2, AT_FDCWD, "file", W_OK, AT_EACCESS));
    SHOW(setxattr("file", "user.stranger", "x", 1, 0));
    SHOW(removexattr("file", "user.stranger"));
    SHOW(fchmodat(AT_FDCWD, "file", 0600, AT_SYMLINK_NOFOLLOW));
    SHOW(lchmod("private/file", 0600));
    SHOW(syscall(SYS_openat, AT_FDCWD, "private/file", O_RDONLY));
    /* By number, of the only thread. */
    SHOW(syscall(SYS_setresuid, -1, 0, -1));
    SHOW(access("private/file", R_OK));
    stream("private/file", "r");
}

/* --- system calls by number --- */

static void numbers(void)
{
    struct stat found;
    struct statx more;
    char text[100];
    long fd = syscall(SYS_openat, AT_FDCWD, "by-number", O_RDWR | O_CREAT | O_EXCL, 0640);
    descriptor("openat", (int)fd);
    SHOW(syscall(SYS_openat, AT_FDCWD, "by-number", O_RDWR | O_CREAT | O_EXCL, 0640));
    SHOW(syscall(SYS_openat, AT_FDCWD, "nowhere", O_RDONLY));
    SHOW(syscall(SYS_openat, 12345, "file", O_RDONLY));
    SHOW(syscall(SYS_openat, AT_FDCWD, (char *)8, O_RDONLY));
    SHOW(syscall(SYS_write, fd, "0123456789", 10));
    SHOW(syscall(SYS_newfstatat, AT_FDCWD, "by-number", &found, 0));
    printf("  %o %ld\n", found.st_mode, (long)found.st_size);
    struct stat same;
    SHOW(syscall(SYS_fstat, fd, &same));
    printf("  same %d\n", same.st_ino == found.st_ino && same.st_dev == found.st_dev);
    SHOW(syscall(SYS_newfstatat, fd, "", &same, AT_EMPTY_PATH));
    printf("  same %d\n", same.st_ino == found.st_ino && same.st_dev == found.st_dev);
    SHOW(syscall(SYS_statx, AT_FDCWD, "by-number", 0, STATX_BASIC_STATS, &more));
    printf("  %o %ld\n", more.stx_mode, (long)more.stx_size);
    SHOW(syscall(SYS_statx, AT_FDCWD, "nowhere", 0, STATX_BASIC_STATS, &more));
    SHOW(syscall(SYS_statx, AT_FDCWD, "by-number", -1, STATX_BASIC_STATS, &more));
    SHOW(syscall(SYS_faccessat, AT_FDCWD, "by-number", R_OK));
    SHOW(syscall(SYS_faccessat2, AT_FDCWD, "by-number", W_OK, AT_EACCESS));
    SHOW(syscall(SYS_faccessat2, AT_FDCWD, "nowhere", F_OK, 0));
    SHOW(syscall(SYS_fchmodat, AT_FDCWD, "by-number", 0600));
    SHOW(syscall(SYS_fchownat, AT_FDCWD, "by-number", getuid(), getgid(), 0));
    SHOW(syscall(SYS_truncate, "by-number", 5L));
    SHOW(syscall(SYS_fchmod, fd, 0644));
    SHOW(syscall(SYS_newfstatat, AT_FDCWD, "by-number", &found, 0));
    printf("  %o %ld\n", found.st_mode, (long)found.st_size);
    struct timespec times[2] = {{1000, 5}, {2000, 6}};
    SHOW(syscall(SYS_utimensat, AT_FDCWD, "by-number", times, 0));
    SHOW(syscall(SYS_newfstatat, AT_FDCWD, "by-number", &found, 0));
    printf("  %ld %ld\n", (long)found.st_mtim.tv_sec, (long)found.st_mtim.tv_nsec);
    times[0].tv_sec = 3000;
    SHOW(syscall(SYS_utimensat, fd, 0, times, 0));
    SHOW(syscall(SYS_newfstatat, AT_FDCWD, "by-number", &found, 0));
    printf("  %ld\n", (long)found.st_atim.tv_sec);
    SHOW(syscall(SYS_setxattr, "by-number", "user.number", "value", 5, 0));
    SHOW(syscall(SYS_getxattr, "by-number", "user.number", text, sizeof text));
    SHOW(syscall(SYS_lgetxattr, "by-number", "user.none", text, sizeof text));
    SHOW(syscall(SYS_listxattr, "by-number", 0, 0));
    SHOW(syscall(SYS_llistxattr, "link", 0, 0));
    SHOW(syscall(SYS_removexattr, "by-number", "user.number"));
    SHOW(syscall(SYS_lremovexattr, "by-number", "user.number"));
    SHOW(syscall(SYS_lsetxattr, "nowhere", "user.number", "value", 5, 0));
    SHOW(syscall(SYS_linkat, AT_FDCWD, "by-number", AT_FDCWD, "second-name", 0));
    SHOW(syscall(SYS_symlinkat, "by-number", AT_FDCWD, "its-link"));
    SHOW(syscall(SYS_readlinkat, AT_FDCWD, "its-link", text, sizeof text));
    printf("  %.9s\n", text);
    SHOW(syscall(SYS_readlinkat, AT_FDCWD, "by-number", text, sizeof text));
    SHOW(syscall(SYS_renameat2, AT_FDCWD, "second-name", AT_FDCWD, "third-name", RENAME_NOREPLACE));
    SHOW(syscall(SYS_renameat2, AT_FDCWD, "third-name", AT_FDCWD, "by-number", RENAME_NOREPLACE));
    SHOW(syscall(SYS_renameat2, AT_FDCWD, "nowhere", AT_FDCWD, "by-number", 0));
    SHOW(syscall(SYS_mkdirat, AT_FDCWD, "numbered", 0750));
    SHOW(syscall(SYS_mkdirat, AT_FDCWD, "numbered", 0750));
    SHOW(syscall(SYS_mknodat, AT_FDCWD, "numbered/fifo", S_IFIFO | 0600, 0));
    long directory = syscall(SYS_openat, AT_FDCWD, "numbered", O_RDONLY | O_DIRECTORY);
    SHOW(syscall(SYS_newfstatat, directory, "fifo", &found, AT_SYMLINK_NOFOLLOW));
    printf("  %o\n", found.st_mode);
    long copy = syscall(SYS_dup, directory);
    SHOW(syscall(SYS_close, directory));
    SHOW(syscall(SYS_newfstatat, directory, "fifo", &found, 0));
    SHOW(syscall(SYS_newfstatat, copy, "fifo", &found, 0));
    SHOW(syscall(SYS_fcntl, copy, F_GETFD));
    /* The number becomes another directory's. */
    long other = syscall(SYS_openat, AT_FDCWD, "directory", O_RDONLY | O_DIRECTORY);
    SHOW(syscall(SYS_dup3, other, copy, O_CLOEXEC) == copy);
    SHOW(faccessat((int)copy, "fifo", F_OK, 0));
    SHOW(faccessat((int)copy, "inner", F_OK, 0));
    SHOW(syscall(SYS_close_range, other, copy > other ? copy : other, 0));
    SHOW(faccessat((int)copy, "inner", F_OK, 0));
    /* The current directory. */
    SHOW(syscall(SYS_chdir, "numbered"));
    SHOW(access("fifo", F_OK));
    directory = syscall(SYS_openat, AT_FDCWD, "../directory", O_RDONLY | O_DIRECTORY);
    SHOW(syscall(SYS_fchdir, directory));
    SHOW(access("inner", F_OK));
    SHOW(syscall(SYS_getcwd, text, sizeof text) > 0);
    SHOW(syscall(SYS_chdir, here));
    SHOW(syscall(SYS_umask, 077));
    SHOW(mkdir("masked", 0777));
    SHOW((stat("masked", &found), found.st_mode));
    SHOW(syscall(SYS_umask, 022));
    SHOW(syscall(SYS_unlinkat, AT_FDCWD, "masked", 0));
    SHOW(syscall(SYS_unlinkat, AT_FDCWD, "masked", AT_REMOVEDIR));
    SHOW(syscall(SYS_unlinkat, AT_FDCWD, "numbered/fifo", 0));
    SHOW(syscall(SYS_unlinkat, AT_FDCWD, "numbered", AT_REMOVEDIR));
    SHOW(syscall(SYS_unlinkat, AT_FDCWD, "third-name", 0));
    SHOW(syscall(SYS_unlinkat, AT_FDCWD, "its-link", 0));
    SHOW(syscall(SYS_unlinkat, AT_FDCWD, "by-number", 0x40000000));
    SHOW(syscall(SYS_unlinkat, AT_FDCWD, "by-number", 0));
    SHOW(syscall(SYS_close, fd));
    SHOW(syscall(SYS_close, fd));
    SHOW(syscall(SYS_getpid) == getpid());
    SHOW(syscall(99999));
#ifdef SYS_open
    fd = syscall(SYS_open, "old", O_WRONLY | O_CREAT, 0644);
    descriptor("open", (int)fd);
    SHOW(syscall(SYS_stat, "old", &found));
    SHOW(syscall(SYS_lstat, "link", &found));
    printf("  %o\n", found.st_mode);
    SHOW(syscall(SYS_access, "old", R_OK));
    SHOW(syscall(SYS_readlink, "link", text, sizeof text));
    SHOW(syscall(SYS_rename, "old", "older"));
    SHOW(syscall(SYS_link, "older", "oldest"));
    SHOW(syscall(SYS_symlink, "older", "old-link"));
    SHOW(syscall(SYS_chmod, "older", 0600));
    SHOW(syscall(SYS_chown, "older", getuid(), getgid()));
    SHOW(syscall(SYS_lchown, "old-link", getuid(), getgid()));
    struct utimbuf seconds = {100, 200};
    SHOW(syscall(SYS_utime, "older", &seconds));
    SHOW((stat("older", &found), found.st_mtime));
    struct timeval parts[2] = {{300, 1}, {400, 2}};
    SHOW(syscall(SYS_utimes, "older", parts));
    SHOW(syscall(SYS_futimesat, AT_FDCWD, "older", parts));
    SHOW((stat("older", &found), found.st_mtim.tv_nsec));
    SHOW(syscall(SYS_renameat, AT_FDCWD, "older", AT_FDCWD, "old"));
    SHOW(syscall(SYS_mkdir, "old-directory", 0700));
    SHOW(syscall(SYS_mknod, "old-directory/node", S_IFREG | 0600, 0));
    SHOW(syscall(SYS_rmdir, "old-directory"));
    SHOW(syscall(SYS_unlink, "old-directory/node"));
    SHOW(syscall(SYS_rmdir, "old-directory"));
    SHOW(syscall(SYS_unlink, "old"));
    SHOW(syscall(SYS_unlink, "oldest"));
    SHOW(syscall(SYS_unlink, "old-link"));
    SHOW(syscall(SYS_dup2, fd, fd) == fd);
    SHOW(syscall(SYS_creat, "old", 0600) >= 0);
    SHOW(syscall(SYS_unlink, "old"));
#endif
}

int main(int argc, char **argv)
{
    const struct {
        const char *name;
        void (*run)(void);
    } stories[] = {{"streams", streams}, {"temporary", temporary}, {"resolve", resolve},       {"place", place}, {"globs", globs}, {"stranger", stranger},
                   {"trees", trees},     {"numbers", numbers},     {"attributes", attributes}, {"modes", modes}};
    setvbuf(stdout, 0, _IOLBF, 0);
    if (!getcwd(here, sizeof here))
        return 2;
    umask(022);
    for (unsigned number = 0; argc == 2 && number < sizeof stories / sizeof *stories; number++)
        if (strcmp(argv[1], stories[number].name) == 0) {
            stories[number].run();
            return 0;
        }
    return 2;
}
