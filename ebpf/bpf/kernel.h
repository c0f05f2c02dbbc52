/* What the programs need of the kernel. Fields are found in the running kernel's type information when a program is loaded
 * (CO-RE), so only those in use are declared, in any order. */
#pragma once

typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef unsigned long long __u64;

#define SEC(name) __attribute__((section(name), used))
#define KERNEL __attribute__((preserve_access_index))
#define inline inline __attribute__((always_inline))

/* How libbpf's conventions write a map's type (bpf_helpers.h). */
#define __uint(name, value) int (*name)[value]
#define __type(name, value) typeof(value) *name

/* enum bpf_map_type, enum bpf_func_id of include/uapi/linux/bpf.h: part of the kernel's interface, never renumbered. */
#define BPF_MAP_TYPE_HASH 1
#define BPF_MAP_TYPE_ARRAY 2
#define BPF_MAP_TYPE_LRU_HASH 9
#define BPF_NOEXIST 1
#define BPF_F_NO_PREALLOC 1

#define EACCES 13
#define ENODATA 61

static void *(*const bpf_map_lookup_elem)(void *map, const void *key) = (void *)1;
static long (*const bpf_map_update_elem)(void *map, const void *key, const void *value, __u64 flags) = (void *)2;
static __u64 (*const bpf_ktime_get_ns)(void) = (void *)5;
static __u64 (*const bpf_get_current_pid_tgid)(void) = (void *)14;
static long (*const bpf_get_current_comm)(void *buffer, __u32 size) = (void *)16;
static long (*const bpf_probe_read_kernel)(void *to, __u32 size, const void *from) = (void *)113;
static long (*const bpf_probe_read_kernel_str)(void *to, __u32 size, const void *from) = (void *)115;
static void *(*const bpf_get_current_task_btf)(void) = (void *)158;
static long (*const bpf_loop)(__u32 count, void *call, void *context, __u64 flags) = (void *)181;

struct super_block {
    __u32 s_dev;
} KERNEL;

struct inode {
    struct super_block *i_sb;
    unsigned long i_ino;
} KERNEL;

struct dentry {
    struct inode *d_inode;
} KERNEL;

typedef struct {
    __u32 val;
} kuid_t;

typedef struct {
    __u32 val;
} kgid_t;

struct group_info {
    int ngroups;
    kgid_t gid[];
} KERNEL;

struct cred {
    kuid_t fsuid;
    kgid_t fsgid;
    struct group_info *group_info;
} KERNEL;

struct task_struct {
    const struct cred *cred;
} KERNEL;

struct fuse_conn {
    __u32 dev; /* the superblock's s_dev */
} KERNEL;

struct fuse_mount {
    struct fuse_conn *fc;
} KERNEL;

struct fuse_in_header {
    __u32 opcode;
} KERNEL;

struct fuse_req {
    struct fuse_mount *fm;
    struct {
        struct fuse_in_header h;
    } in;
} KERNEL;
