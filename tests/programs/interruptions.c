/* Signals, jumps, cancellation and small stacks in the middle of file calls. */
#include "work.h"
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>

static volatile sig_atomic_t handled, handler_bad;

static void handler(int signal) {
    (void)signal;
    static volatile sig_atomic_t number;
    char name[20];
    int n = number++ % 4;
    name[0] = 'h', name[1] = '0' + n, name[2] = 0;
    int bad = brief_work(name);
    if (bad) handler_bad = bad;
    handled++;
}

static void alarms(int on, int microseconds) {
    struct itimerval every = {{0, on ? microseconds : 0}, {0, on ? microseconds : 0}};
    setitimer(ITIMER_REAL, &every, NULL);
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

/* Runs for some time, until at least `least` signals were handled. */
static void signals(double seconds, int on_alternate_stack) {
    struct sigaction action = {.sa_handler = handler, .sa_flags = SA_RESTART | (on_alternate_stack ? SA_ONSTACK : 0)};
    stack_t stack = {.ss_sp = malloc(SIGSTKSZ), .ss_size = SIGSTKSZ};
    if (on_alternate_stack) sigaltstack(&stack, NULL);
    sigaction(SIGALRM, &action, NULL);
    int bad = 0;
    double until = now() + seconds, last = until + 60;
    alarms(1, 1000);
    while (!bad && (now() < until || (handled < 50 && now() < last))) bad = work_at(".", "main");
    alarms(0, 0);
    printf("main: %d, handler: %d, handled enough: %d\n", bad, (int)handler_bad, handled >= 50);
}

static sigjmp_buf away;
static volatile sig_atomic_t jumps, may_jump;

static void jumper(int signal) {
    (void)signal;
    if (may_jump) {
        jumps++;
        siglongjmp(away, 1);
    }
}

/* A jump out of a call leaves the program able to go on. */
static void jump(void) {
    struct sigaction action = {.sa_handler = jumper};
    struct stat seen;
    sigaction(SIGALRM, &action, NULL);
    volatile int bad = 0;
    double last = now() + 60;
    alarms(1, 700);
    while (jumps < 300 && now() < last) {
        if (sigsetjmp(away, 1) == 0) {
            may_jump = 1;
            for (int again = 0; again < 100000; again++) {
                /* None of these takes a descriptor with it. */
                if (stat("f1", &seen) || seen.st_size != 8 || access("sub/f2", R_OK) || !access("none", F_OK)) {
                    may_jump = 0;
                    bad = __LINE__;
                    break;
                }
            }
        }
        may_jump = 0;
        if (jumps % 10 == 0) {
            int line = work_at(".", "jump");
            if (line) bad = line;
        }
    }
    alarms(0, 0);
    printf("jumped enough: %d, bad: %d, work: %d\n", jumps >= 300, (int)bad, work_at(".", "jump"));
    pid_t pid = fork();
    if (pid == 0) _exit(work_at(".", "child"));
    int status;
    waitpid(pid, &status, 0);
    printf("child: %x\n", status);
}

/* --- cancellation --- */

static volatile int cleaned;
static volatile long rounds;

static void cleanup(void *unused) {
    (void)unused;
    cleaned = 1;
}

static void *cancelled_later(void *type) {
    struct stat seen;
    int before;
    pthread_cleanup_push(cleanup, NULL);
    pthread_setcanceltype(*(int *)type, &before);
    for (;;) {
        stat("f1", &seen);
        access("sub/f2", R_OK);
        rename("none", "other");
        rounds++;
    }
    pthread_cleanup_pop(0);
    return NULL;
}

static void *cancelled_in_open(void *unused) {
    (void)unused;
    pthread_cleanup_push(cleanup, NULL);
    /* No other cancellation point. */
    for (;;) {
        if (open("missing", O_RDONLY) >= 0) break;
        rounds++;
    }
    pthread_cleanup_pop(0);
    return NULL;
}

static void *cancelled_at_fifo(void *unused) {
    (void)unused;
    pthread_cleanup_push(cleanup, NULL);
    rounds = 100;
    open("fifo", O_RDONLY);
    pthread_cleanup_pop(0);
    return NULL;
}

static void *cancelled_in_fopen(void *unused) {
    (void)unused;
    pthread_cleanup_push(cleanup, NULL);
    for (;;) {
        FILE *file = fopen("f1", "r");
        if (file) fclose(file);
        rounds++;
    }
    pthread_cleanup_pop(0);
    return NULL;
}

static void cancel_one(const char *what, void *(*body)(void *), int type, int times) {
    int all = 0, clean = 0;
    for (int i = 0; i < times; i++) {
        pthread_t thread;
        void *result;
        cleaned = 0;
        rounds = 0;
        pthread_create(&thread, NULL, body, &type);
        while (rounds < 1 + i % 7) sched_yield();
        struct timespec pause = {0, (i * 7919) % 50000};
        nanosleep(&pause, NULL);
        pthread_cancel(thread);
        pthread_join(thread, &result);
        all += result == PTHREAD_CANCELED;
        clean += cleaned;
    }
    printf("%s: %d cancelled, %d cleaned up, work %d\n", what, all, clean, work_at(".", "cancel"));
    fflush(stdout);
}

static void cancellation(void) {
    mkfifo("fifo", 0600);
    cancel_one("open", cancelled_in_open, 0, 20);
    cancel_one("fifo", cancelled_at_fifo, 0, 20);
    cancel_one("fopen", cancelled_in_fopen, 0, 20);
    cancel_one("asynchronous", cancelled_later, PTHREAD_CANCEL_ASYNCHRONOUS, 300);
}

/* --- many threads, small stacks --- */

static void *small(void *number) {
    char name[40];
    snprintf(name, sizeof name, "small-%ld", (long)number);
    for (int i = 0; i < 3; i++) {
        int bad = brief_work(name);
        if (bad) return (void *)(long)bad;
    }
    return NULL;
}

static void threads(int count, size_t stack_size) {
    pthread_t *all = calloc(count, sizeof *all);
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    int error = pthread_attr_setstacksize(&attributes, stack_size);
    long started = 0, bad = 0;
    for (int i = 0; i < count; i++) started += pthread_create(&all[i], &attributes, small, (void *)(long)i) == 0;
    for (int i = 0; i < count; i++) {
        void *result;
        pthread_join(all[i], &result);
        if (result) bad = (long)result;
    }
    printf("%d threads: %d, %ld started, bad: %ld, work %d\n", count, error, started, bad, work_at(".", "threads"));
}

/* --- one call on the smallest stack there is --- */

static void *smallest(void *unused) {
    return (void *)(long)(brief_work("smallest") + (unused != NULL));
}

static void small_stacks(void) {
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    printf("PTHREAD_STACK_MIN: %d\n", pthread_attr_setstacksize(&attributes, PTHREAD_STACK_MIN));
    pthread_t thread;
    void *result;
    /* The first call of the process on the mount: it connects. */
    pthread_create(&thread, &attributes, smallest, NULL);
    pthread_join(thread, &result);
    printf("first: %ld\n", (long)result);
    pthread_create(&thread, &attributes, smallest, NULL);
    pthread_join(thread, &result);
    printf("second: %ld\n", (long)result);
}

int main(int argc, char **argv) {
    double seconds = argc > 2 ? atof(argv[2]) : 1;
    if (!strcmp(argv[1], "signals")) signals(seconds, 0);
    else if (!strcmp(argv[1], "alternate")) signals(seconds, 1);
    else if (!strcmp(argv[1], "jump")) jump();
    else if (!strcmp(argv[1], "cancel")) cancellation();
    else if (!strcmp(argv[1], "threads")) threads(atoi(argv[2]), 65536);
    else if (!strcmp(argv[1], "stacks")) small_stacks();
    else return 97;
    return 0;
}
