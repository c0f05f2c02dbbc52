/*
 * One process of the staleness hunt. In each round one or two actors change a few names of a small tree; when they have
 * been answered, all actors look at what has changed, in every way in which a program can, and compare it with the truth:
 * what the same calls say of a directory that no Finesse is in front of. Between the rounds they take hold of what only a
 * cache that has been warmed can show wrongly: descriptors, mappings, working directories, names that do not exist.
 *
 * Three trees take part. Changes are made on the MOUNT and repeated on the TWIN, a native directory, which must answer them
 * with the same errno. The TRUTH is the mount's source, or the twin where there is no source.
 *
 * Everything that is done is a function of the seed, the round and the actor; only how it falls together in time is not.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/falloc.h>
#include <linux/futex.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

enum { MOUNT, TRUTH, TWIN, TREES };
enum { ACTORS = 8, LOG = 1 << 12, FILES = 4, DIRECTORIES = 3, TEXT = 2048, LONGEST = 12000, PATIENCE = 60 };
/* The last directory is the working directory of the mount. */
enum { CWD = DIRECTORIES - 1 };
/* Nanoseconds that no clock says: times that were set. */
enum { SET_NS = 123456789 };

/* --- the names --- */

/* The first character after the last slash tells whose a name is when two actors change names at once. */
static const char *const NAMES[] = {
    ".", "a", "b", "c", "p", "q", "p/a", "p/b", "p/c", "p/s", "q/a", "q/b", "q/s", "p/s/a", "p/s/b", "q/s/a", "q/s/b",
};
enum { NAMES_LENGTH = sizeof NAMES / sizeof *NAMES };
/* Names relative to a directory that is held. */
static const char *const INSIDE[] = {".", "..", "a", "b", "c", "s", "p", "q", "s/a", "../a", "../p"};
enum { INSIDE_LENGTH = sizeof INSIDE / sizeof *INSIDE };
static const char *const TARGETS[] = {"a", "b", "p", "../b", "s/a", "q/b", "nothing", "."};
enum { TARGETS_LENGTH = sizeof TARGETS / sizeof *TARGETS };

/* --- what the actors share --- */

struct change {
    uint32_t round;
    uint8_t actor, kind, name, other, way, slot;
    /* Both names from the root, if they are among NAMES; otherwise NAMES_LENGTH. */
    uint8_t from_root[2];
    int32_t number;
    int32_t error;
};

struct shared {
    /* Rounds whose changes have been announced and answered. */
    _Atomic uint32_t begun, answered[2];
    /* The last round that each actor has looked at. */
    _Atomic uint32_t looked[ACTORS];
    _Atomic uint32_t over, failed;
    /* How many move a directory, and which actors look at anything meanwhile. */
    _Atomic uint32_t moving, racing[ACTORS];
    /* What each actor has mapped, as an index of NAMES; 0 for nothing. */
    _Atomic uint8_t mapped[ACTORS][FILES];
    _Atomic uint64_t checks[ACTORS][16];
    /* See `is_torn`. */
    _Atomic uint64_t torn;
    /* The changes that succeeded. */
    _Atomic uint64_t changes[ACTORS][32];
    _Atomic uint32_t logged;
    struct change log[LOG];
};

static struct shared *shared;
static unsigned actors, actor;
static uint64_t seed, checks_wanted;
static time_t seconds;
static int is_preloaded[ACTORS];
/* Directories may be out of the kernel's cache, and so without a path, until somebody looks them up. */
static int loses_paths;
/* What is seen seldom is not made right by looking: in most rounds an actor looks at a few names only. */
static int looks_seldom;
/* As long as no file has a second name, a removal need not ask which file it is. */
static int makes_no_links;
/* The truth is the twin: times, inode numbers and sizes of directories are its own. */
static int is_model;
static char root[TREES][PATH_MAX / 2];
static int root_fd[TREES];
static ino_t root_ino[TREES];
static uint32_t round_now;
static const char *doing = "starting";

static const char *road(unsigned who) { return is_preloaded[who] ? "bypass" : "kernel road"; }

/* --- chance (splitmix64) --- */

static uint64_t chance_state, racing_state;

static uint64_t chance_of(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static unsigned chance(unsigned below) { return (chance_of(&chance_state) >> 33) % below; }

static void begin_chance(uint64_t purpose)
{
    chance_state = seed * 0x2545f4914f6cdd1du + ((uint64_t)round_now << 8) + purpose;
    chance_of(&chance_state);
}

/* --- text --- */

struct text {
    size_t length;
    char bytes[TEXT];
};

static void say(struct text *text, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void say(struct text *text, const char *format, ...)
{
    va_list list;
    va_start(list, format);
    int more = vsnprintf(text->bytes + text->length, TEXT - text->length, format, list);
    va_end(list);
    text->length += more;
    if (text->length >= TEXT)
        text->length = TEXT - 1;
}

static void say_error(struct text *text) { say(text, "%s ", strerrorname_np(errno)); }

/* --- the changes --- */

#define KINDS(X) \
    X(CREATE, 14) X(WRITE, 10) X(APPEND, 4) X(PWRITE, 4) X(TRUNCATE, 3) X(MAPPED_WRITE, 2) X(ALLOCATE, 2) X(COPY, 4) \
    X(MKDIR, 10) X(RMDIR, 4) X(UNLINK, 5) X(SYMLINK, 3) X(LINK, 8) X(FIFO, 1) X(RENAME, 12) X(EXCHANGE, 3) X(NOREPLACE, 2) \
    X(CHMOD, 4) X(CHOWN, 2) X(UTIME, 3) X(SETXATTR, 3) X(REMOVEXATTR, 2) X(SETACL, 2) X(DEFAULTACL, 1) X(UNPACK, 8) \
    X(FCHMOD, 2) X(FCHOWN, 1) X(FUTIME, 1) X(FTRUNCATE, 3) X(FWRITE, 8) X(FSETXATTR, 1)
#define ENUM(kind, weight) kind,
#define TITLE(kind, weight) #kind,
#define WEIGHT(kind, weight) weight,
enum kind { KINDS(ENUM) KIND_COUNT };
static const char *const TITLES[] = {KINDS(TITLE)};
static const unsigned WEIGHTS[] = {KINDS(WEIGHT)};

/* What the actor holds, in each tree. */
static int held[FILES][TREES], held_for_writing[FILES];
static char *held_map[FILES];
static int directory[DIRECTORIES][TREES];
static char held_as[FILES + DIRECTORIES][64];

static char pattern[LONGEST];

static void write_pattern(int number)
{
    for (int i = 0; i < LONGEST; i++)
        pattern[i] = 'a' + (number + i / 7) % 26;
}

/* A name of a change: as an absolute path, or relative to a directory of the actor. */
static const char *path_of(int tree, unsigned way, const char *name, char *buffer)
{
    if (way)
        return name;
    snprintf(buffer, PATH_MAX, "%.2000s/%s", root[tree], name);
    return buffer;
}

static int base_of(int tree, unsigned way)
{
    if (!way)
        return AT_FDCWD;
    return way == CWD + 1 && tree == MOUNT ? AT_FDCWD : directory[way - 1][tree];
}

static const char *leaf_of(const char *name)
{
    const char *slash = strrchr(name, '/');
    return slash ? slash + 1 : name;
}

static const char *name_of(unsigned way, unsigned index) { return way ? INSIDE[index] : NAMES[index]; }

/* An access control list of another user, owner, group, mask and others (`struct posix_acl_xattr_header`). */
static size_t make_acl(char *bytes, int number)
{
    const uint16_t entries[][4] = {
        {1, 6, 0xffff, 0xffff}, {2, number & 7, 7, 0}, {4, 5, 0xffff, 0xffff}, {16, 7, 0xffff, 0xffff}, {32, number >> 3 & 7, 0xffff, 0xffff},
    };
    memcpy(bytes, &(uint32_t){2}, 4);
    memcpy(bytes + 4, entries, sizeof entries);
    return 4 + sizeof entries;
}

/* Opens, does one thing, closes; the error is that of the first that fails. */
#define WITH(flags, mode, call) \
    ({ \
        int fd = openat(base, path, (flags) | O_CLOEXEC | O_NONBLOCK, mode); \
        long done = fd < 0 ? -1 : (call); \
        int error = errno; \
        if (fd >= 0 && close(fd) && done >= 0) \
            done = -1, error = errno; \
        errno = error; \
        done; \
    })

static long mapped_write(int fd, int number)
{
    struct stat s;
    if (fstat(fd, &s))
        return -1;
    if (!S_ISREG(s.st_mode) || !s.st_size)
        return 0;
    size_t size = s.st_size < LONGEST ? s.st_size : LONGEST;
    char *map = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED)
        return -1;
    size_t from = (unsigned)number % size;
    memcpy(map + from, pattern, size - from < 100 ? size - from : 100);
    int synced = msync(map, size, MS_SYNC);
    munmap(map, size);
    return synced;
}

/* As tar does: makes a file, or removes it, and gives the directory the times that it had. */
static long unpack(int base, const char *path, mode_t mode)
{
    const struct timespec times[2] = {{1000000, SET_NS}, {2000000, SET_NS}};
    char parent[PATH_MAX];
    int fd = openat(base, path, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, mode);
    if (fd >= 0)
        close(fd);
    else if (errno != EEXIST || unlinkat(base, path, 0))
        return -1;
    snprintf(parent, sizeof parent, "%s", path);
    char *slash = strrchr(parent, '/');
    if (slash)
        *slash = 0;
    return utimensat(base, slash ? parent : ".", times, 0);
}

static long copy(int tree, const struct change *c, int to)
{
    char buffer[PATH_MAX];
    int from = openat(base_of(tree, c->way), path_of(tree, c->way, name_of(c->way, c->other), buffer), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (from < 0)
        return -1;
    long copied = copy_file_range(from, NULL, to, NULL, 500, 0);
    int error = errno;
    close(from);
    errno = error;
    return copied;
}

/*
 * The kernel counts a FUSE file's links down once the removal of a name has been answered, though others may have asked for
 * the count meanwhile. The file has no links then in its eyes, and gets none, until its attributes are asked for again.
 * ARCHITECTURE.md has more.
 */
static long make_link(int tree, int base, const char *path, const char *other)
{
    for (int tries = 3;; tries--) {
        struct statx x;
        long done = linkat(base, path, base, other, 0);
        if (!done || errno != ENOENT || tree != MOUNT || is_preloaded[actor] || tries == 1)
            return done;
        if (statx(base, path, AT_STATX_FORCE_SYNC | AT_SYMLINK_NOFOLLOW, STATX_BASIC_STATS, &x))
            return done;
    }
}

/* Makes a change in one tree: 0 or the errno. */
static int change(int tree, const struct change *c)
{
    char buffer[PATH_MAX], other_buffer[PATH_MAX], bytes[64];
    const char *path = path_of(tree, c->way, name_of(c->way, c->name), buffer);
    const char *other = path_of(tree, c->way, name_of(c->way, c->other), other_buffer);
    int base = base_of(tree, c->way), n = c->number, fd_held = held[c->slot % FILES][tree];
    mode_t mode = 0600 | (n & 0177);
    /* The same again and again, so that nobody can tell by the time that something has changed. */
    struct timespec times[2] = {{1000000 + n % 3, SET_NS}, {2000000 + n % 3, SET_NS}};
    /* As if it had been read after the last change, and in the future: then reading it changes nothing (`relatime`). */
    if (n & 4)
        times[0].tv_sec += 4000000000;
    long done = -1;
    write_pattern(n);
    switch ((enum kind)c->kind) {
    case CREATE: done = WITH(O_CREAT | O_EXCL | O_WRONLY, mode, write(fd, pattern, n % 5000)); break;
    case WRITE: done = WITH(O_CREAT | O_TRUNC | O_WRONLY, mode, write(fd, pattern, n % 9000)); break;
    case APPEND: done = WITH(O_APPEND | O_WRONLY, 0, write(fd, pattern, 1 + n % 700)); break;
    case PWRITE: done = WITH(O_WRONLY, 0, pwrite(fd, pattern, 1 + n % 300, n % 5000)); break;
    case TRUNCATE: done = n & 1 ? WITH(O_WRONLY, 0, ftruncate(fd, n % 6000)) : c->way ? WITH(O_WRONLY | O_TRUNC, 0, 0) : truncate(path, n % 6000); break;
    case MAPPED_WRITE: done = WITH(O_RDWR, 0, mapped_write(fd, n)); break;
    case ALLOCATE: done = WITH(O_WRONLY, 0, fallocate(fd, n & 1 ? FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE : 0, n % 4000, 1 + n % 3000)); break;
    case COPY: done = WITH(O_WRONLY, 0, copy(tree, c, fd)); break;
    case MKDIR: done = mkdirat(base, path, 0700 | mode); break;
    case RMDIR: done = unlinkat(base, path, AT_REMOVEDIR); break;
    case UNLINK: done = unlinkat(base, path, 0); break;
    case SYMLINK: done = symlinkat(TARGETS[n % TARGETS_LENGTH], base, path); break;
    case LINK: done = make_link(tree, base, path, other); break;
    case FIFO: done = mkfifoat(base, path, mode); break;
    case RENAME: done = renameat(base, path, base, other); break;
    case EXCHANGE: done = renameat2(base, path, base, other, RENAME_EXCHANGE); break;
    case NOREPLACE: done = renameat2(base, path, base, other, RENAME_NOREPLACE); break;
    case CHMOD: done = fchmodat(base, path, 0400 | (n & 0377), 0); break;
    case CHOWN: done = fchownat(base, path, n % 3, n / 3 % 3, AT_SYMLINK_NOFOLLOW); break;
    case UTIME: done = utimensat(base, path, times, AT_SYMLINK_NOFOLLOW); break;
    case SETXATTR: done = c->way ? WITH(O_RDONLY, 0, fsetxattr(fd, "user.k", pattern, n % 50, 0)) : lsetxattr(path, n & 1 ? "user.k" : "trusted.k", pattern, n % 50, 0); break;
    case REMOVEXATTR: done = c->way ? WITH(O_RDONLY, 0, fremovexattr(fd, "user.k")) : lremovexattr(path, is_model || n & 1 ? "user.k" : "system.posix_acl_access"); break;
    case SETACL: done = c->way ? WITH(O_RDONLY, 0, fsetxattr(fd, "system.posix_acl_access", bytes, make_acl(bytes, n), 0)) : setxattr(path, "system.posix_acl_access", bytes, make_acl(bytes, n), 0); break;
    case DEFAULTACL: done = c->way ? WITH(O_RDONLY, 0, fremovexattr(fd, "system.posix_acl_default")) : setxattr(path, "system.posix_acl_default", bytes, make_acl(bytes, n), 0); break;
    case UNPACK: done = unpack(base, path, mode); break;
    case FCHMOD: done = fchmod(fd_held, 0400 | (n & 0377)); break;
    case FCHOWN: done = fchown(fd_held, n % 3, n / 3 % 3); break;
    case FUTIME: done = futimens(fd_held, times); break;
    case FTRUNCATE: done = ftruncate(fd_held, n % 6000); break;
    case FWRITE: done = pwrite(fd_held, pattern, 1 + n % 900, n % 4000); break;
    case FSETXATTR: done = fsetxattr(fd_held, "user.k", pattern, n % 50, 0); break;
    case KIND_COUNT: abort();
    }
    return done < 0 ? errno : 0;
}

static int is_held_kind(int kind) { return kind >= FCHMOD; }
static int has_other(int kind) { return kind == LINK || kind == RENAME || kind == EXCHANGE || kind == NOREPLACE || kind == COPY; }

static void say_change(struct text *text, const struct change *c)
{
    say(text, "  round %u, actor %u (%s): %s ", c->round, c->actor, road(c->actor), TITLES[c->kind]);
    if (is_held_kind(c->kind))
        say(text, "held %u", c->slot % FILES);
    else
        say(text, "%s%s", c->way == 0 ? "" : c->way == CWD + 1 ? "cwd " : c->way == 1 ? "d0 " : "d1 ", name_of(c->way, c->name));
    if (has_other(c->kind))
        say(text, " -> %s", name_of(c->way, c->other));
    say(text, " [%d]%s%s\n", c->number, c->error ? ": " : "", c->error ? strerrorname_np(c->error) : "");
}

/* What a name in a directory that is held, or a held file, is called from the root. */
static uint8_t from_root(int fd, const char *inside)
{
    char link[64], path[PATH_MAX] = "";
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 16);
    size_t prefix = strlen(root[TWIN]);
    if (length < 0 || strncmp(path, root[TWIN], prefix))
        return NAMES_LENGTH;
    if (inside)
        sprintf(path + length, "/%s", inside);
    const char *name = path + prefix + (path[prefix] == '/');
    uint8_t i = 0;
    while (i < NAMES_LENGTH && strcmp(NAMES[i], name))
        i++;
    return i;
}

static void note_names(struct change *c)
{
    for (int i = 0; i < 2; i++) {
        unsigned index = i ? c->other : c->name;
        if (is_held_kind(c->kind))
            c->from_root[i] = from_root(held[c->slot % FILES][TWIN], NULL);
        else
            c->from_root[i] = c->way ? from_root(directory[c->way - 1][TWIN], INSIDE[index]) : index;
    }
}

/* --- failure --- */

static void mentions(struct text *report, const char *name)
{
    const char *leaf = name ? leaf_of(name) : NULL;
    uint32_t end = shared->logged, begin = end > LOG ? end - LOG : 0, of_the_name[24], found = 0;
    for (uint32_t i = end; leaf && i-- > begin && found < 24;) {
        const struct change *c = &shared->log[i % LOG];
        const char *one = leaf_of(name_of(c->way, c->name)), *two = leaf_of(name_of(c->way, c->other));
        if (is_held_kind(c->kind) || !strcmp(one, leaf) || (has_other(c->kind) && !strcmp(two, leaf)) || strchr("pqs", *one))
            of_the_name[found++] = i;
    }
    static struct text lines;
    while (found) {
        lines.length = 0;
        say_change(&lines, &shared->log[of_the_name[--found] % LOG]);
        say(report, "%s", lines.bytes);
    }
}

/* Reports and ends: the first actor to fail only. */
static _Noreturn void fail(const char *name, const char *format, ...) __attribute__((format(printf, 2, 3)));
static _Noreturn void fail(const char *name, const char *format, ...)
{
    static char big[65536];
    static struct text what, last;
    va_list list;
    if (atomic_exchange(&shared->failed, 1))
        _exit(0);
    va_start(list, format);
    what.length = vsnprintf(what.bytes, TEXT, format, list);
    va_end(list);
    int length = snprintf(big, sizeof big, "seed %llu, round %u, actor %u on the %s\n%s\nit holds", (unsigned long long)seed, round_now, actor, road(actor), what.bytes);
    for (int i = 0; i < FILES + DIRECTORIES; i++)
        length += snprintf(big + length, sizeof big - length, " %s%d=%s", i < FILES ? "held " : i - FILES == CWD ? "cwd" : "d", i < FILES ? i : i - FILES, held_as[i]);
    length += snprintf(big + length, sizeof big - length, "\nlast changes of this name and of directories:\n");
    mentions(&last, name);
    length += snprintf(big + length, sizeof big - length, "%slast changes of all:\n", last.bytes);
    uint32_t end = shared->logged;
    for (uint32_t i = end > 12 ? end - 12 : 0; i < end; i++) {
        last.length = 0;
        say_change(&last, &shared->log[i % LOG]);
        length += snprintf(big + length, sizeof big - length, "%s", last.bytes);
    }
    write(STDOUT_FILENO, big, length);
    shared->over = 1;
    syscall(SYS_futex, &shared->begun, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
    _exit(0);
}

/* --- looking --- */

#define ASPECTS(X) \
    X(LSTAT) X(STAT) X(STATX) X(ACCESS) X(OPEN) X(READ) X(MMAP) X(READLINK) X(LIST) X(XATTRS) X(HELD_STAT) X(HELD_READ) X(HELD_XATTRS) \
    X(HELD_MAP) X(WORKING_DIRECTORY) X(ERRNO)
#define ASPECT(aspect) aspect,
#define ASPECT_TITLE(aspect) #aspect,
enum aspect { ASPECTS(ASPECT) ASPECT_COUNT };
static const char *const ASPECT_TITLES[] = {ASPECTS(ASPECT_TITLE)};
_Static_assert(ASPECT_COUNT == 16 && KIND_COUNT <= 32, "as many as are counted");

static sigjmp_buf after_fault;
static volatile sig_atomic_t may_fault;

static void faulted(int signal)
{
    if (may_fault)
        siglongjmp(after_fault, signal);
    _exit(3);
}

static void say_bytes(struct text *text, const char *bytes, ssize_t size)
{
    uint64_t h = 0xcbf29ce484222325u;
    for (ssize_t i = 0; i < size; i++)
        h = (h ^ (unsigned char)bytes[i]) * 0x100000001b3u;
    say(text, "%zd bytes %016llx %.12s ", size, (unsigned long long)h, size >= 12 ? bytes : "");
}

static void say_time(struct text *text, const char *what, struct timespec time)
{
    if (!is_model || time.tv_nsec == SET_NS)
        say(text, "%s=%lld.%09ld ", what, (long long)time.tv_sec, time.tv_nsec);
}

static void say_stat(struct text *text, int tree, const struct stat *s)
{
    say(text, "mode=%o links=%lu owner=%u:%u ", s->st_mode, (unsigned long)s->st_nlink, s->st_uid, s->st_gid);
    if (!is_model || !S_ISDIR(s->st_mode))
        say(text, "size=%lld ", (long long)s->st_size);
    /* The root of a mount has a number of its own. */
    if (!is_model)
        say(text, "ino=%llu ", s->st_ino == root_ino[tree] ? 0 : (unsigned long long)s->st_ino);
    say_time(text, "mtime", s->st_mtim);
    /* What reading does to it is the file system's own. */
    if (!is_model) {
        say_time(text, "atime", s->st_atim);
        say_time(text, "ctime", s->st_ctim);
    }
}

static int by_name(const void *one, const void *other) { return strcmp(*(char *const *)one, *(char *const *)other); }

static void say_sorted(struct text *text, char **words, size_t count)
{
    qsort(words, count, sizeof *words, by_name);
    for (size_t i = 0; i < count; i++)
        say(text, "%s ", words[i]);
}

static void say_list(struct text *text, int tree, const char *path, DIR *stream)
{
    char entries[32][48], *words[32];
    size_t count = 0;
    ino_t above = 0;
    struct dirent *entry;
    struct stat s;
    errno = 0;
    while (count < 32 && (entry = readdir(stream))) {
        if (!strcmp(entry->d_name, "."))
            continue;
        if (!strcmp(entry->d_name, "..")) {
            above = entry->d_ino;
            continue;
        }
        if (is_model)
            snprintf(entries[count], sizeof *entries, "%.16s:%d", entry->d_name, entry->d_type);
        else
            snprintf(entries[count], sizeof *entries, "%.16s:%d:%llu", entry->d_name, entry->d_type, (unsigned long long)entry->d_ino);
        words[count] = entries[count];
        count++;
    }
    if (errno)
        say_error(text);
    closedir(stream);
    say_sorted(text, words, count);
    /* An absolute path leads below the root. Whether a removed directory has these two is the file system's own. */
    if (above && !is_model && *path == '/' && !stat(path, &s) && s.st_nlink && s.st_ino != root_ino[tree])
        say(text, "above=%llu ", above == root_ino[tree] ? 0 : (unsigned long long)above);
}

static void say_xattrs(struct text *text, const char *path, int fd)
{
    char names[512], value[256], *words[16];
    size_t count = 0;
    ssize_t size = path ? llistxattr(path, names, sizeof names) : flistxattr(fd, names, sizeof names);
    if (size < 0)
        say_error(text);
    for (char *name = names; name < names + size && count < 16; name += strlen(name) + 1)
        /* What the machine's security modules add is none of ours. */
        if (strncmp(name, "security.", 9))
            words[count++] = name;
    say_sorted(text, words, count);
    static const char *const ASKED[] = {"user.k", "trusted.k", "system.posix_acl_access", "system.posix_acl_default"};
    for (int i = 0; i < (is_model ? 2 : 4); i++) {
        size = path ? lgetxattr(path, ASKED[i], value, sizeof value) : fgetxattr(fd, ASKED[i], value, sizeof value);
        if (size < 0)
            say_error(text);
        else
            say_bytes(text, value, size);
    }
}

/* Reads a file that may be a mapping. */
static void say_contents(struct text *text, int fd, int through_mapping)
{
    static char bytes[1 << 16];
    struct stat s;
    if (!through_mapping) {
        ssize_t size = pread(fd, bytes, sizeof bytes, 0);
        if (size < 0)
            say_error(text);
        else
            say_bytes(text, bytes, size);
        return;
    }
    if (fstat(fd, &s) || !S_ISREG(s.st_mode) || !s.st_size) {
        say(text, "nothing to map ");
        return;
    }
    char *map = mmap(NULL, s.st_size, PROT_READ, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED) {
        say_error(text);
        return;
    }
    if (!sigsetjmp(after_fault, 1)) {
        may_fault = 1;
        say_bytes(text, map, s.st_size);
    } else {
        say(text, "SIGBUS ");
    }
    may_fault = 0;
    munmap(map, s.st_size);
}

/* What one aspect of a name is in one tree. */
static void look(struct text *text, enum aspect aspect, int tree, unsigned way, const char *name)
{
    char buffer[PATH_MAX], inside[PATH_MAX + 64];
    const char *path = path_of(tree, way, name, buffer);
    int base = base_of(tree, way), fd;
    struct stat s;
    struct statx x;
    text->length = 0;
    text->bytes[0] = 0;
    switch (aspect) {
    case LSTAT:
    case STAT:
        if (fstatat(base, path, &s, aspect == LSTAT ? AT_SYMLINK_NOFOLLOW : 0))
            say_error(text);
        else
            say_stat(text, tree, &s);
        break;
    case STATX:
        if (statx(base, path, AT_SYMLINK_NOFOLLOW | AT_STATX_SYNC_AS_STAT, STATX_BASIC_STATS, &x)) {
            say_error(text);
            break;
        }
        memset(&s, 0, sizeof s);
        s.st_mode = x.stx_mode, s.st_nlink = x.stx_nlink, s.st_uid = x.stx_uid, s.st_gid = x.stx_gid, s.st_size = x.stx_size, s.st_ino = x.stx_ino;
        s.st_mtim = (struct timespec){x.stx_mtime.tv_sec, x.stx_mtime.tv_nsec};
        s.st_atim = (struct timespec){x.stx_atime.tv_sec, x.stx_atime.tv_nsec};
        s.st_ctim = (struct timespec){x.stx_ctime.tv_sec, x.stx_ctime.tv_nsec};
        say_stat(text, tree, &s);
        break;
    case ACCESS:
        for (int mode = F_OK; mode <= X_OK; mode++)
            say(text, "%s ", faccessat(base, path, mode, 0) ? strerrorname_np(errno) : "yes");
        break;
    case OPEN:
    case READ:
    case MMAP:
        fd = openat(base, path, O_RDONLY | O_NONBLOCK | O_CLOEXEC | (aspect == OPEN ? O_NOFOLLOW : 0));
        if (fd < 0) {
            say_error(text);
            break;
        }
        if (aspect == OPEN)
            fstat(fd, &s) ? say_error(text) : say_stat(text, tree, &s);
        else
            say_contents(text, fd, aspect == MMAP);
        close(fd);
        break;
    case READLINK: {
        ssize_t length = readlinkat(base, path, inside, sizeof inside);
        if (length < 0)
            say_error(text);
        else
            say(text, "%.*s ", (int)length, inside);
        break;
    }
    case LIST: {
        DIR *stream;
        if (base == AT_FDCWD) {
            stream = opendir(path);
        } else {
            fd = openat(base, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
            stream = fd < 0 ? NULL : fdopendir(fd);
        }
        if (stream)
            say_list(text, tree, path, stream);
        else
            say_error(text);
        break;
    }
    case XATTRS:
        if (base != AT_FDCWD) {
            snprintf(inside, sizeof inside, "/proc/self/fd/%d/%s", base, path);
            path = inside;
        }
        say_xattrs(text, path, -1);
        break;
    default: abort();
    }
}

/* What one aspect of a held descriptor is in one tree. */
static void look_at_held(struct text *text, enum aspect aspect, int tree, int slot)
{
    int fd = held[slot][tree];
    struct stat s;
    text->length = 0;
    text->bytes[0] = 0;
    switch (aspect) {
    case HELD_STAT: fstat(fd, &s) ? say_error(text) : say_stat(text, tree, &s); break;
    case HELD_READ: say_contents(text, fd, 0); break;
    case HELD_XATTRS: say_xattrs(text, NULL, fd); break;
    case HELD_MAP:
        if (tree != MOUNT) {
            static char bytes[4096];
            ssize_t size = pread(fd, bytes, sizeof bytes, 0);
            size < 0 ? say_error(text) : say_bytes(text, bytes, size);
        } else {
            /* As far as the truth goes: what is beyond the end is in the page as well. */
            struct stat truth;
            fstat(held[slot][TRUTH], &truth);
            if (!sigsetjmp(after_fault, 1)) {
                may_fault = 1;
                say_bytes(text, held_map[slot], truth.st_size < 4096 ? truth.st_size : 4096);
            } else {
                say(text, "SIGBUS ");
            }
            may_fault = 0;
        }
        break;
    default: abort();
    }
}

static void look_at_working_directory(struct text *text, int tree)
{
    char path[PATH_MAX] = "", fd[64];
    text->length = 0;
    text->bytes[0] = 0;
    if (tree == MOUNT) {
        if (!getcwd(path, sizeof path)) {
            say_error(text);
            return;
        }
    } else {
        snprintf(fd, sizeof fd, "/proc/self/fd/%d", directory[CWD][tree]);
        ssize_t length = readlink(fd, path, sizeof path - 1);
        if (length > 10 && !strcmp(path + length - 10, " (deleted)")) {
            say(text, "ENOENT ");
            return;
        }
    }
    size_t prefix = strlen(root[tree]);
    say(text, "ROOT%s ", strncmp(path, root[tree], prefix) ? path : path + prefix);
}

static void count(enum aspect aspect) { atomic_fetch_add_explicit(&shared->checks[actor][aspect], 1, memory_order_relaxed); }

static uint64_t checks_made(void)
{
    uint64_t sum = 0;
    for (unsigned i = 0; i < ACTORS; i++)
        for (int j = 0; j < ASPECT_COUNT; j++)
            sum += shared->checks[i][j];
    return sum;
}

/* Whether both texts are attributes of one file. */
static int are_of_one_file(const char *one, const char *other)
{
    unsigned mode[2];
    const char *ino[2] = {strstr(one, " ino="), strstr(other, " ino=")};
    if (sscanf(one, "mode=%o ", &mode[0]) != 1 || sscanf(other, "mode=%o ", &mode[1]) != 1 || (mode[0] ^ mode[1]) & S_IFMT || !ino[0] != !ino[1])
        return 0;
    return !ino[0] || !strncmp(ino[0], ino[1], strcspn(ino[0] + 1, " ") + 2);
}

/* The kernel takes in attributes while others read them: it says first that they are good, and has all of them a few instructions later
   (`fuse_change_attributes_common`, and `fuse_update_get_attr`, which takes no lock). Who looks at that very moment sees the old ones of
   that file, or some of them, once, whatever file system it is: up to one look in 20 000 at an inode that is changed before each, and asked for by
   another process, all as fast as they can, which is much more than a hunt does. More are none of that. */
static int is_torn(enum aspect aspect, const char *seen, const char *again, const char *truth)
{
    enum { SELDOM = 1000000 };
    int of_attributes = aspect == LSTAT || aspect == STAT || aspect == STATX || aspect == HELD_STAT;
    if (is_preloaded[actor] || !of_attributes || strcmp(again, truth) || !are_of_one_file(seen, truth))
        return 0;
    return atomic_fetch_add(&shared->torn, 1) <= checks_made() / SELDOM;
}

static void compared(enum aspect aspect, const char *where, const char *name, struct text *seen, struct text *truth, void (*again)(struct text *, int, void *), void *what)
{
    count(aspect);
    if (!strcmp(seen->bytes, truth->bytes))
        return;
    static struct text later[2];
    again(&later[0], MOUNT, what);
    if (is_torn(aspect, seen->bytes, later[0].bytes, truth->bytes))
        return;
    usleep(50000);
    again(&later[1], MOUNT, what);
    fail(name, "%s of %s %s\n  seen:     %s\n  expected: %s\n  again:    %s\n  50 ms later: %s", ASPECT_TITLES[aspect], where, name, seen->bytes, truth->bytes, later[0].bytes, later[1].bytes);
}

struct glance {
    enum aspect aspect;
    unsigned way;
    const char *name;
    int slot;
};

static void glance(struct text *text, int tree, void *what)
{
    struct glance *g = what;
    if (g->aspect < HELD_STAT)
        look(text, g->aspect, tree, g->way, g->name);
    else if (g->aspect < WORKING_DIRECTORY)
        look_at_held(text, g->aspect, tree, g->slot);
    else
        look_at_working_directory(text, tree);
}

/* A list tells the kernel names that it otherwise has only from moving something there: for some rounds nobody lists. */
static enum aspect listing_or(enum aspect other) { return shared->begun >> 3 & 1 ? LIST : other; }

static void check(struct glance g)
{
    static struct text seen, truth;
    static char where[64];
    if (g.aspect == LIST)
        g.aspect = listing_or(LSTAT);
    glance(&seen, MOUNT, &g);
    glance(&truth, TRUTH, &g);
    if (g.aspect == WORKING_DIRECTORY && loses_paths && !strcmp(seen.bytes, "ENOENT "))
        seen = truth;
    if (g.aspect >= HELD_STAT)
        snprintf(where, sizeof where, g.aspect == WORKING_DIRECTORY ? "the working directory, then" : "held %d, opened as", g.slot);
    else
        snprintf(where, sizeof where, g.way == 0 ? "path" : g.way == CWD + 1 ? "path relative to the working directory," : "path relative to d%u,", g.way - 1);
    compared(g.aspect, where, g.aspect < HELD_STAT ? g.name : held_as[g.aspect == WORKING_DIRECTORY ? FILES + CWD : g.slot], &seen, &truth, glance, &g);
}

static void check_name(unsigned way, const char *name)
{
    /* Another order each time: what one way of looking refreshes, the next cannot show to be old. */
    unsigned first = chance(HELD_STAT), step = (const unsigned[]){1, 3, 7, 9}[chance(4)];
    for (unsigned i = 0; i < HELD_STAT; i++) {
        enum aspect aspect = (first + i * step) % HELD_STAT;
        if (chance(4))
            check((struct glance){aspect, way, name, 0});
    }
}

static void check_held(void)
{
    for (int slot = 0; slot < FILES; slot++) {
        if (held[slot][MOUNT] < 0)
            continue;
        unsigned first = chance(4);
        for (unsigned i = 0; i < 4; i++) {
            enum aspect aspect = HELD_STAT + (first + i) % 4;
            if (aspect != HELD_MAP || held_map[slot])
                check((struct glance){aspect, 0, NULL, slot});
        }
    }
    for (unsigned d = 0; d < DIRECTORIES; d++) {
        if (directory[d][MOUNT] < 0)
            continue;
        if (d == CWD)
            check((struct glance){WORKING_DIRECTORY, 0, NULL, 0});
        for (int i = 0; i < 3; i++)
            check((struct glance){chance(HELD_STAT), d + 1, INSIDE[chance(INSIDE_LENGTH)], 0});
    }
}

static void check_all(void)
{
    unsigned first = chance(NAMES_LENGTH);
    for (unsigned i = 0; i < NAMES_LENGTH; i++)
        check_name(0, NAMES[(first + i) % NAMES_LENGTH]);
    for (unsigned d = 0; d < DIRECTORIES; d++)
        for (unsigned i = 0; i < INSIDE_LENGTH && directory[d][MOUNT] >= 0; i++)
            check_name(d + 1, INSIDE[i]);
}

static int has_prefix(const char *name, const char *prefix)
{
    size_t length = strlen(prefix);
    return !strncmp(name, prefix, length) && name[length] == '/';
}

static void check_changed(const char *name)
{
    char parent[64];
    check_name(0, name);
    snprintf(parent, sizeof parent, "%s", name);
    char *slash = strrchr(parent, '/');
    if (slash)
        *slash = 0;
    else
        strcpy(parent, ".");
    check((struct glance){LSTAT, 0, slash ? parent : ".", 0});
    check((struct glance){LIST, 0, slash ? parent : ".", 0});
    for (unsigned i = 0; i < NAMES_LENGTH; i++)
        if (has_prefix(NAMES[i], name))
            check((struct glance){chance(HELD_STAT), 0, NAMES[i], 0});
}

/* Looks at everything that the round has changed. */
static void check_round(uint32_t from, uint32_t to)
{
    /* First what looking at anything else puts right: who looks up a moved directory makes the kernel move it, and who asks
       for attributes learns that pages are old. */
    if (directory[CWD][MOUNT] >= 0)
        check((struct glance){WORKING_DIRECTORY, 0, NULL, 0});
    for (int slot = 0; slot < FILES; slot++)
        if (held_map[slot])
            check((struct glance){HELD_MAP, 0, NULL, slot});
    if (looks_seldom && chance(8)) {
        for (int i = 0; i < 3; i++)
            check((struct glance){chance(2) ? LSTAT : READ, 0, NAMES[chance(NAMES_LENGTH)], 0});
        check_held();
        return;
    }
    if (to - from > 10 || chance(24) == 0) {
        check_all();
        check_held();
        return;
    }
    if (chance(2))
        check_held();
    for (uint32_t i = from; i < to; i++) {
        const struct change *c = &shared->log[i % LOG];
        for (int j = 0; j <= has_other(c->kind); j++)
            if (c->from_root[j] < NAMES_LENGTH)
                check_changed(NAMES[c->from_root[j]]);
        /* Another name of the same file. */
        for (int j = 0; j < 4; j++)
            check((struct glance){chance(2) ? LSTAT : READ, 0, NAMES[chance(NAMES_LENGTH)], 0});
    }
    check_held();
}

/* --- taking hold --- */

static void let_go_of_file(int slot)
{
    if (held_map[slot])
        munmap(held_map[slot], 4096);
    held_map[slot] = NULL;
    for (int tree = 0; tree < TREES; tree++) {
        if (held[slot][tree] >= 0)
            close(held[slot][tree]);
        held[slot][tree] = -1;
    }
    strcpy(held_as[slot], "nothing");
}

static void hold_file(int slot)
{
    let_go_of_file(slot);
    const char *name = NULL;
    /* Mostly for reading if it is mapped: whoever can write through a mapping keeps others off the bypass. */
    int map = chance(3) == 0, flags = (chance(map ? 4 : 2) ? O_RDONLY : O_RDWR) | O_CLOEXEC;
    /* Only a file; one that is a link's target is as good. Often what others hold, too: one of the first names. */
    for (int tries = 0; tries < 4 && !name; tries++) {
        const char *candidate = NAMES[1 + chance(chance(2) ? NAMES_LENGTH - 1 : 6)];
        struct stat s;
        if (!fstatat(root_fd[TRUTH], candidate, &s, 0) && S_ISREG(s.st_mode))
            name = candidate;
    }
    if (!name)
        return;
    for (int tree = 0; tree < TREES; tree++) {
        char buffer[PATH_MAX];
        held[slot][tree] = open(path_of(tree, 0, name, buffer), flags);
        if (held[slot][tree] < 0)
            fail(name, "open of %s, %s: %s, and it exists", name, tree == MOUNT ? "to hold it" : "beside the mount", strerrorname_np(errno));
    }
    held_for_writing[slot] = flags & O_RDWR;
    snprintf(held_as[slot], sizeof *held_as, "%s@%u", name, round_now);
    if (map) {
        held_map[slot] = mmap(NULL, 4096, PROT_READ, MAP_SHARED, held[slot][MOUNT], 0);
        if (held_map[slot] == MAP_FAILED)
            fail(name, "mmap of %s: %s", name, strerrorname_np(errno));
    }
}

static void let_go_of_directory(unsigned d)
{
    for (int tree = 0; tree < TREES; tree++) {
        if (directory[d][tree] >= 0)
            close(directory[d][tree]);
        directory[d][tree] = -1;
    }
    strcpy(held_as[FILES + d], "nothing");
}

static void hold_directory(unsigned d)
{
    char buffer[PATH_MAX];
    struct stat s;
    const char *name = NAMES[chance(NAMES_LENGTH)];
    if (fstatat(root_fd[TRUTH], name, &s, 0) || !S_ISDIR(s.st_mode))
        return;
    let_go_of_directory(d);
    for (int tree = 0; tree < TREES; tree++) {
        directory[d][tree] = open(path_of(tree, 0, name, buffer), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (directory[d][tree] < 0)
            fail(name, "open of the directory %s: %s, and it exists", name, strerrorname_np(errno));
    }
    if (d == CWD && chdir(path_of(MOUNT, 0, name, buffer)))
        fail(name, "chdir to %s: %s, and it exists", name, strerrorname_np(errno));
    snprintf(held_as[FILES + d], sizeof *held_as, "%s@%u", name, round_now);
}

static void take_hold(void)
{
    if (chance(3) == 0) {
        int slot = chance(FILES);
        chance(4) ? hold_file(slot) : let_go_of_file(slot);
    }
    if (chance(4) == 0)
        hold_directory(chance(DIRECTORIES));
    for (int slot = 0; slot < FILES; slot++) {
        uint8_t name = held_map[slot] ? from_root(held[slot][TWIN], NULL) : 0;
        shared->mapped[actor][slot] = name < NAMES_LENGTH ? name : 0;
    }
}

/* --- rounds --- */

static mode_t type_in_twin(unsigned way, const char *name)
{
    char buffer[PATH_MAX];
    struct stat s;
    if (fstatat(base_of(TWIN, way), path_of(TWIN, way, name, buffer), &s, AT_SYMLINK_NOFOLLOW))
        return 0;
    return s.st_mode & S_IFMT;
}

/* Whether it is a fifo that a change would open. Whether somebody reads from that decides what comes of it, and whoever looks at it opens it
   to read. */
static int leads_to_fifo(const struct change *c)
{
    char buffer[PATH_MAX];
    struct stat s;
    return !fstatat(base_of(TWIN, c->way), path_of(TWIN, c->way, name_of(c->way, c->name), buffer), &s, 0) && S_ISFIFO(s.st_mode);
}

static int opens_to_write(enum kind kind)
{
    return kind == WRITE || kind == APPEND || kind == PWRITE || kind == TRUNCATE || kind == MAPPED_WRITE || kind == ALLOCATE || kind == COPY;
}

/* Whether a change has something to change, in most cases. */
static int is_promising(const struct change *c)
{
    mode_t one = type_in_twin(c->way, name_of(c->way, c->name)), two = type_in_twin(c->way, name_of(c->way, c->other));
    switch ((enum kind)c->kind) {
    case CREATE: case MKDIR: case SYMLINK: case FIFO: return !one;
    case RMDIR: return one == S_IFDIR;
    case LINK: return one && one != S_IFDIR && !two;
    case RENAME: return one && c->name != c->other && (!two || (one == S_IFDIR) == (two == S_IFDIR));
    case EXCHANGE: return one && two && c->name != c->other;
    case NOREPLACE: return one && !two;
    case UNLINK: case CHOWN: return one && one != S_IFDIR;
    case UTIME: return one;
    case CHMOD: case SETACL: case SETXATTR: case REMOVEXATTR: return one == S_IFREG || one == S_IFDIR;
    case DEFAULTACL: return one == S_IFDIR;
    case UNPACK: return one != S_IFDIR;
    case FCHMOD: case FCHOWN: case FUTIME: case FSETXATTR: return held[c->slot % FILES][TWIN] >= 0;
    case FTRUNCATE: case FWRITE: return held[c->slot % FILES][TWIN] >= 0 && held_for_writing[c->slot % FILES];
    case WRITE: return !one || one == S_IFREG;
    case COPY: return one == S_IFREG && two == S_IFREG && c->name != c->other;
    default: return one == S_IFREG;
    }
}

static int moves_directory(const struct change *c)
{
    if (c->kind != RENAME && c->kind != EXCHANGE && c->kind != NOREPLACE)
        return 0;
    return type_in_twin(c->way, name_of(c->way, c->name)) == S_IFDIR || (c->kind == EXCHANGE && type_in_twin(c->way, name_of(c->way, c->other)) == S_IFDIR);
}

/* Makes a change of the mount. While it moves a directory nobody looks that up through the kernel. Who does so and is told that
   the name leads elsewhere takes the directory out of the kernel's cache, perhaps after it was moved there
   (`fuse_dentry_revalidate`, `d_invalidate`): on every FUSE file system. Until somebody looks it up again, it has no path. */
static int change_mount(const struct change *c)
{
    if (!moves_directory(c))
        return change(MOUNT, c);
    shared->moving++;
    for (unsigned i = 0; i < ACTORS; i++)
        while (shared->racing[i] && !shared->over)
            sched_yield();
    int error = change(MOUNT, c);
    shared->moving--;
    return error;
}

/* What two actors may do at once, each with its own names, so that the outcome does not depend on who is first. */
static int is_independent(int kind)
{
    return kind == CREATE || kind == MKDIR || kind == RMDIR || kind == UNLINK || kind == SYMLINK || kind == LINK || kind == RENAME || kind == FIFO;
}

static int changes_contents(int kind) { return kind == WRITE || kind == APPEND || kind == PWRITE || kind == TRUNCATE || kind == ALLOCATE || kind == COPY; }

static int is_served(int kind)
{
    if (kind == LINK && makes_no_links)
        return 0;
    /* Not all kinds are known to file systems of which there is only a model. */
    return !is_model || (kind != SETACL && kind != DEFAULTACL && kind != ALLOCATE && kind != COPY);
}

static unsigned own_name(int leaf)
{
    for (;;) {
        unsigned index = chance(NAMES_LENGTH);
        if (*leaf_of(NAMES[index]) == leaf)
            return index;
    }
}

static struct change draw(int leaf)
{
    unsigned total = 0;
    for (int i = 0; i < KIND_COUNT; i++)
        total += WEIGHTS[i];
    for (;;) {
        unsigned kind = 0;
        for (unsigned left = chance(total); left >= WEIGHTS[kind]; kind++)
            left -= WEIGHTS[kind];
        if (is_served(kind) && (!leaf || is_independent(kind))) {
            struct change c = {.round = round_now, .actor = actor, .kind = kind, .number = chance(1 << 20), .slot = chance(FILES)};
            if (leaf) {
                c.name = own_name(leaf), c.other = own_name(leaf);
                return c;
            }
            unsigned d = chance(2 * DIRECTORIES);
            if (d < DIRECTORIES && directory[d][MOUNT] >= 0) {
                /* Not the directory itself, nor what is above it. */
                c.way = d + 1, c.name = 2 + chance(6), c.other = 2 + chance(6);
                return c;
            }
            /* Directories are made where they have names below them. */
            do {
                c.name = 1 + chance(NAMES_LENGTH - 1);
            } while (kind == MKDIR && chance(4) && !strchr("pqs", *leaf_of(NAMES[c.name])));
            /* What is mapped shows old pages that any other look makes right. */
            unsigned mapped = shared->mapped[chance(actors)][chance(FILES)];
            if (changes_contents(kind) && mapped && chance(4))
                c.name = mapped;
            c.other = 1 + chance(NAMES_LENGTH - 1);
            return c;
        }
    }
}

static void make_changes(int leaf)
{
    /* Many at a time leave more that can be stale for each look. */
    unsigned how_many = (const unsigned[]){1, 1, 1, 2, 5, 40}[chance(6)];
    for (unsigned i = 0; i < how_many; i++) {
        struct change c = draw(leaf);
        for (int tries = 0; tries < 8 && !is_promising(&c); tries++)
            c = draw(leaf);
        if (is_held_kind(c.kind) && held[c.slot % FILES][MOUNT] < 0)
            continue;
        if (opens_to_write(c.kind) && leads_to_fifo(&c))
            continue;
        note_names(&c);
        doing = TITLES[c.kind];
        c.error = change_mount(&c);
        shared->log[shared->logged++ % LOG] = c;
        shared->changes[actor][c.kind] += !c.error;
        int expected = change(TWIN, &c);
        count(ERRNO);
        if (c.error != expected)
            fail(name_of(c.way, c.name), "%s of %s: %s; expected: %s", TITLES[c.kind], name_of(c.way, c.name), c.error ? strerrorname_np(c.error) : "success", expected ? strerrorname_np(expected) : "success");
    }
}

/* Whether no link stands where the names of two actors meet. */
static int is_calm(void)
{
    for (unsigned i = 0; i < NAMES_LENGTH; i++)
        if (strchr("pqs", *leaf_of(NAMES[i])) && type_in_twin(0, NAMES[i]) == S_IFLNK)
            return 0;
    return 1;
}

static time_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec;
}

/* Looks at random names, whatever is there: requests that are under way while something changes. */
static void race(void)
{
    static struct text text;
    uint64_t r = chance_of(&racing_state);
    enum aspect aspect = (const enum aspect[]){LSTAT, LSTAT, STAT, OPEN, READ, LIST, READLINK, ACCESS, XATTRS, MMAP}[r % 10];
    if (aspect == LIST)
        aspect = listing_or(LSTAT);
    shared->racing[actor] = 1;
    int quietly = shared->moving != 0;
    if (quietly)
        shared->racing[actor] = 0;
    /* The bypass answers this without the kernel. */
    if (!quietly || is_preloaded[actor])
        look(&text, quietly ? LSTAT : aspect, MOUNT, 0, NAMES[(r >> 8) % NAMES_LENGTH]);
    shared->racing[actor] = 0;
}

/* Waits until a count is at least that of this round; races meanwhile, or sleeps. */
static void await(_Atomic uint32_t *count, uint32_t least, int races, const char *what, unsigned whom)
{
    time_t begin = now();
    for (unsigned spins = 0; (int32_t)(*count - least) < 0; spins++) {
        if (shared->over)
            _exit(0);
        if (races) {
            race();
        } else if (spins < 200) {
            __builtin_ia32_pause();
        } else if (spins < 220) {
            sched_yield();
        } else {
            uint32_t seen = *count;
            struct timespec second = {1, 0};
            if ((int32_t)(seen - least) < 0)
                syscall(SYS_futex, count, FUTEX_WAIT, seen, &second, NULL, 0);
        }
        if (spins % 64 == 63 && now() - begin > PATIENCE)
            fail(NULL, "no progress for %d s: waiting for %s of actor %u", PATIENCE, what, whom);
    }
}

static void advance(_Atomic uint32_t *count, uint32_t value)
{
    *count = value;
    syscall(SYS_futex, count, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

static void hunt(void)
{
    time_t begin = now();
    uint32_t from = 0;
    int calm = 1;
    for (round_now = 1;; round_now++) {
        /* All actors draw the same. */
        begin_chance(0);
        unsigned one = chance(actors), both = actors > 1 && chance(4) == 0 && calm, other = (one + 1 + chance(actors - 1 ? actors - 1 : 1)) % actors;
        int mine = actor == one ? 0 : both && actor == other ? 1 : -1;
        unsigned swap = chance(2);
        begin_chance(1 + actor);
        if (mine == 0) {
            for (unsigned i = 0; i < actors; i++)
                await(&shared->looked[i], round_now - 1, 0, "looks", i);
            if (checks_made() >= checks_wanted || now() - begin >= seconds) {
                shared->over = 1;
                advance(&shared->begun, round_now);
                return;
            }
        } else {
            /* Until it begins, so that what was announced is what is done. */
            await(&shared->begun, round_now, 0, "beginning", one);
        }
        if (mine == 0)
            advance(&shared->begun, round_now);
        if (mine >= 0) {
            make_changes(both ? (mine ^ swap ? 'a' : 'b') : 0);
            advance(&shared->answered[mine], round_now);
        }
        doing = "waiting";
        int races = chance(4) != 0;
        for (int i = 0; i <= (int)both; i++)
            if (mine != i)
                await(&shared->answered[i], round_now, races, "an answer", i ? other : one);
        uint32_t to = shared->logged;
        doing = "looking";
        check_round(from, to);
        from = to;
        doing = "taking hold";
        take_hold();
        /* As long as nothing changes. */
        calm = is_calm();
        advance(&shared->looked[actor], round_now);
        if (shared->over)
            return;
    }
}

/* Another who asks all the time, and of whom nobody waits for anything. */
static void disturb(void)
{
    while (!shared->over)
        race();
}

/* What the actors on either road have counted. */
static void tell_sum(const char *of, const char *title, void *counts, size_t stride, int index)
{
    uint64_t sum[2] = {0};
    for (unsigned i = 0; i < actors; i++)
        sum[is_preloaded[i]] += ((_Atomic uint64_t *)counts)[i * stride + index];
    printf("%s %s %llu %llu\n", of, title, (unsigned long long)sum[0], (unsigned long long)sum[1]);
}

static void tell(void)
{
    for (int kind = 0; kind < KIND_COUNT; kind++)
        if (is_served(kind))
            tell_sum("change", TITLES[kind], shared->changes, sizeof *shared->changes / sizeof **shared->changes, kind);
    for (int aspect = 0; aspect < ASPECT_COUNT; aspect++)
        tell_sum("check", ASPECT_TITLES[aspect], shared->checks, sizeof *shared->checks / sizeof **shared->checks, aspect);
    printf("torn once %llu 0\n", (unsigned long long)shared->torn);
}

/* ACTOR ROADS SEED CHECKS SECONDS SHARED MOUNT TWIN [SOURCE]; ROADS has a letter for each actor, k or b. */
int main(int argc, char **argv)
{
    (void)argc;
    /* With the test. */
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    actor = atoi(argv[1]);
    actors = strlen(argv[2]);
    for (unsigned i = 0; i < actors; i++)
        is_preloaded[i] = argv[2][i] == 'b';
    seed = strtoull(argv[3], NULL, 10);
    checks_wanted = strtoull(argv[4], NULL, 10);
    seconds = atol(argv[5]);
    int fd = open(argv[6], O_RDWR | O_CLOEXEC);
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (fd < 0 || shared == MAP_FAILED) {
        perror(argv[6]);
        return 2;
    }
    is_model = !argv[9];
    loses_paths = getenv("LOSES_PATHS") != NULL;
    looks_seldom = getenv("LOOKS_SELDOM") != NULL;
    makes_no_links = getenv("MAKES_NO_LINKS") != NULL;
    const char *const trees[TREES] = {argv[7], is_model ? argv[8] : argv[9], argv[8]};
    for (int tree = 0; tree < TREES; tree++) {
        struct stat s;
        snprintf(root[tree], sizeof *root, "%s", trees[tree]);
        root_fd[tree] = open(root[tree], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (root_fd[tree] < 0 || fstat(root_fd[tree], &s)) {
            perror(root[tree]);
            return 2;
        }
        root_ino[tree] = s.st_ino;
        for (int i = 0; i < FILES; i++)
            held[i][tree] = -1;
        for (int i = 0; i < DIRECTORIES; i++)
            directory[i][tree] = -1;
    }
    for (int i = 0; i < FILES + DIRECTORIES; i++)
        strcpy(held_as[i], "nothing");
    umask(0);
    racing_state = seed + actor;
    signal(SIGBUS, faulted);
    signal(SIGSEGV, faulted);
    if (actor >= actors) {
        disturb();
        return 0;
    }
    hunt();
    /* Who began the last round has seen all others finish theirs. */
    if (!shared->failed && shared->looked[actor] + 1 == round_now)
        tell();
    return 0;
}
