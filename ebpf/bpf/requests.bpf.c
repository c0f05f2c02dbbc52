/* Counts the requests that the kernel sends to one mount's daemon. */
#include "kernel.h"

/* Operation codes are below this, but for those of character devices (CUSE). The loader knows these sizes, too. */
#define OPCODES 64
#define COMMAND 16

struct sender {
    __u32 process;
    __u32 opcode;
};

struct sent {
    __u64 requests;
    char command[COMMAND];
};

/* Whose requests, and who answers them: set before the program is loaded. */
const volatile __u32 device;
const volatile __u32 daemon;

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, OPCODES);
    __type(key, __u32);
    __type(value, __u64);
} by_opcode SEC(".maps");

/* Who has not sent for the longest time is forgotten first; the sums above stay right. */
struct {
    __uint(type, BPF_MAP_TYPE_LRU_HASH);
    __uint(max_entries, 8192);
    __type(key, struct sender);
    __type(value, struct sent);
} by_sender SEC(".maps");

/* void fuse_request_send(const struct fuse_req *) */
SEC("tp_btf/fuse_request_send")
int count(__u64 *arguments)
{
    const struct fuse_req *req = (const struct fuse_req *)arguments[0];
    if (req->fm->fc->dev != device)
        return 0;

    __u32 opcode = req->in.h.opcode;
    __u64 *sum = bpf_map_lookup_elem(&by_opcode, &opcode);
    if (sum)
        __sync_fetch_and_add(sum, 1);

    struct sender sender = { .process = bpf_get_current_pid_tgid() >> 32, .opcode = opcode };
    struct sent first = { .requests = 1 };
    /* What waited in the background (fc->bg_queue) is sent by whoever makes room: the daemon, with an answer. */
    if (sender.process == daemon)
        sender.process = 0;
    else
        bpf_get_current_comm(first.command, sizeof(first.command));

    struct sent *sent = bpf_map_lookup_elem(&by_sender, &sender);
    if (!sent) {
        if (!bpf_map_update_elem(&by_sender, &sender, &first, BPF_NOEXIST))
            return 0;
        /* Another thread of the process was faster, or there is no memory. */
        sent = bpf_map_lookup_elem(&by_sender, &sender);
    }
    if (sent) {
        __sync_fetch_and_add(&sent->requests, 1);
        /* The process may have begun another program. */
        __builtin_memcpy(sent->command, first.command, sizeof(first.command));
    }
    return 0;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
