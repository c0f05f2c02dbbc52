/* Answers for files that are known to have no extended attributes: what FUSE asks its daemon every time. */
#include "kernel.h"

/* Which names may be answered; the loader knows them, too. */
#define USER 1
#define SECURITY 2
#define TRUSTED 4
#define ACL 8

struct known {
    __u64 until; /* bpf_ktime_get_ns() */
    __u64 kinds;
};

/* Of the mount: set before the programs are loaded. */
const volatile __u32 device;

/* By inode number, which is the daemon's node id. Daemons take entries out before they acknowledge a change. */
struct {
    __uint(type, BPF_MAP_TYPE_LRU_HASH);
    __uint(max_entries, 1 << 17);
    __type(key, __u64);
    __type(value, struct known);
} files SEC(".maps");

/* How often a request was saved. */
struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 1);
    __type(key, __u32);
    __type(value, __u64);
} answers SEC(".maps");

/* What may be answered for a file. */
static inline __u64 kinds_of(struct dentry *dentry)
{
    struct inode *inode = dentry->d_inode;
    if (!inode || inode->i_sb->s_dev != device)
        return 0;
    __u64 id = inode->i_ino;
    struct known *known = bpf_map_lookup_elem(&files, &id);
    return known && bpf_ktime_get_ns() < known->until ? known->kinds : 0;
}

static inline int absent(void)
{
    __u32 zero = 0;
    __u64 *count = bpf_map_lookup_elem(&answers, &zero);
    if (count)
        __sync_fetch_and_add(count, 1);
    return -ENODATA;
}

/* The kind of attribute that a name belongs to. */
static inline __u64 kind_of(const char *text)
{
    /* Compared as little-endian numbers: a constant string would need a map of its own. */
    union {
        char text[16];
        __u64 head;
    } name = {};
    bpf_probe_read_kernel_str(name.text, sizeof(name.text), text);
    if ((name.head & 0xffffffffff) == 0x2e72657375) /* user. */
        return USER;
    if (name.head == 0x7974697275636573 && name.text[8] == '.') /* security */
        return SECURITY;
    if (name.head == 0x2e64657473757274) /* trusted. */
        return TRUSTED;
    return 0;
}

/* int inode_getxattr(struct dentry *, const char *name): `vfs_getxattr` has checked that the caller may ask. */
SEC("lsm/inode_getxattr")
int getxattr(__u64 *arguments)
{
    int verdict = arguments[2];
    if (verdict)
        return verdict;
    __u64 kinds = kinds_of((struct dentry *)arguments[0]);
    return kinds && kinds & kind_of((const char *)arguments[1]) ? absent() : 0;
}

/* int inode_get_acl(struct mnt_idmap *, struct dentry *, const char *name), Linux 6.3: also how getxattr(2) asks. */
SEC("lsm/inode_get_acl")
int get_acl(__u64 *arguments)
{
    int verdict = arguments[3];
    if (verdict)
        return verdict;
    return kinds_of((struct dentry *)arguments[1]) & ACL ? absent() : 0;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
