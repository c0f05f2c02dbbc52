/* Checks walks through directories, and the listing of them, by the rules of src/rules.rs. */
#include "kernel.h"

/* Operations and kinds of callers; the loader knows them, too. */
#define SEARCH 1
#define LIST 2
#define CREATE 16
#define REMOVE 32
#define USER 1
#define GROUP 2

/* include/linux/fs.h */
#define MAY_EXEC 1
#define MAY_WRITE 2
#define MAY_READ 4
#define MAY_ACCESS 0x10
#define MAY_OPEN 0x20

/* NGROUPS_MAX */
#define GROUPS 65536

struct zone {
    __u32 position; /* of its first rule for everyone */
    __u32 allowed;
    __u32 groups_from; /* the position of its first rule for a group */
};

struct caller {
    __u32 zone;
    __u32 kind;
    __u32 id;
};

struct first {
    __u32 position;
    __u32 allowed;
};

/* Of the mount: set before the program is loaded. */
const volatile __u32 device;

/* Where not everybody may do everything: zones by inode number, which is the daemon's node id. Daemons put a directory in before the
 * kernel hears of it. */
struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(map_flags, BPF_F_NO_PREALLOC);
    __uint(max_entries, 1 << 20);
    __type(key, __u64);
    __type(value, __u32);
} directories SEC(".maps");

/* As many as there are: set before the program is loaded. */
struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 1);
    __type(key, __u32);
    __type(value, struct zone);
} zones SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, 1);
    __type(key, struct caller);
    __type(value, struct first);
} named SEC(".maps");

/* How often something was denied; and whether the program was ever called, which not every kernel does that loads it. */
#define DENIALS 0
#define CALLED 1
struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 2);
    __type(key, __u32);
    __type(value, __u64);
} counts SEC(".maps");

/* Takes the rule for a caller if it comes before the one that is known. */
static inline void consider(struct first *first, struct caller *caller)
{
    struct first *other = bpf_map_lookup_elem(&named, caller);
    if (other && other->position < first->position)
        *first = *other;
}

struct search {
    struct first first;
    struct caller caller;
    __u64 ids; /* the address of the list of groups */
};

static long consider_group(__u32 index, struct search *search)
{
    if (bpf_probe_read_kernel(&search->caller.id, sizeof(__u32), (void *)(search->ids + index * 4ull))) {
        search->first.allowed = 0;
        return 1;
    }
    consider(&search->first, &search->caller);
    return 0;
}

/* What the current task may do in a zone. */
static inline __u32 allowed_in(__u32 number)
{
    struct zone *zone = bpf_map_lookup_elem(&zones, &number);
    if (!zone)
        return 0;
    const struct cred *cred = ((struct task_struct *)bpf_get_current_task_btf())->cred;
    struct search search = {
        .first = { .position = zone->position, .allowed = zone->allowed },
        .caller = { .zone = number, .kind = USER, .id = cred->fsuid.val },
    };
    consider(&search.first, &search.caller);
    if (zone->groups_from >= search.first.position)
        return search.first.allowed;

    search.caller.kind = GROUP;
    search.caller.id = cred->fsgid.val;
    consider(&search.first, &search.caller);
    /* Read as a number, so that there is no limit to what may be added to it. */
    struct group_info *groups;
    int count;
    if (bpf_probe_read_kernel(&groups, sizeof(groups), &cred->group_info) ||
        bpf_probe_read_kernel(&count, sizeof(count), &groups->ngroups) || count < 0 || count > GROUPS)
        return 0;
    search.ids = (__u64)&groups->gid;
    bpf_loop(count, consider_group, &search, 0);
    return search.first.allowed;
}

/* int inode_permission(struct inode *, int mask) */
SEC("lsm/inode_permission")
int walk(__u64 *arguments)
{
    struct inode *inode = (struct inode *)arguments[0];
    int mask = arguments[1], verdict = arguments[2];
    __u32 called = CALLED, denials = DENIALS;
    __u64 *count = bpf_map_lookup_elem(&counts, &called);
    if (count && !*count)
        *count = 1;
    if (verdict || inode->i_sb->s_dev != device)
        return verdict;
    __u64 id = inode->i_ino;
    __u32 *zone = bpf_map_lookup_elem(&directories, &id);
    if (!zone)
        return 0;
    __u32 needed = 0;
    if (mask & MAY_EXEC)
        needed |= SEARCH;
    /* Without these it is about extended attributes (xattr_permission), or a name is about to change: for the daemon to judge. */
    if (mask & (MAY_ACCESS | MAY_OPEN)) {
        if (mask & MAY_READ)
            needed |= LIST;
        if (mask & MAY_WRITE)
            needed |= CREATE | REMOVE;
    }
    if (!needed || (allowed_in(*zone) & needed) == needed)
        return 0;
    count = bpf_map_lookup_elem(&counts, &denials);
    if (count)
        __sync_fetch_and_add(count, 1);
    return -EACCES;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
