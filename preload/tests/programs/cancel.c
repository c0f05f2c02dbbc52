/* A thread that is cancelled inside open() ends, and its process goes on: glibc unwinds the thread's stack,
 * and the hook is on it. */
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

static void *reader(void *path) { return (void *)(long)open(path, O_RDONLY); }

int main(int argc, char **argv)
{
    pthread_t thread;
    void *result;
    if (argc < 2 || mkfifo(argv[1], 0600))
        return 2;
    if (pthread_create(&thread, 0, reader, argv[1]))
        return 2;
    pthread_cancel(thread);
    pthread_join(thread, &result);
    return result == PTHREAD_CANCELED ? 0 : 1;
}
