/* Starts the shell in every way that there is; each child says what arrived. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

#define SCRIPT "echo $0 $* X=$X preloaded=${LD_PRELOAD:+yes}"

static void ends(const char *how, pid_t pid)
{
    int status = -1;
    waitpid(pid, &status, 0);
    printf("%s: %x\n", how, status);
    fflush(stdout);
}

#define CHILD(how, fork, call)       \
    do {                             \
        pid_t pid = fork();          \
        if (!pid) {                  \
            call;                    \
            _exit(99);               \
        }                            \
        ends(how, pid);              \
    } while (0)

int main(void)
{
    char *argv[] = {"sh", "-c", SCRIPT, "arguments", "1", "2", 0};
    char *envp[] = {"X=given", "PATH=/bin:/usr/bin", 0};
    char *none[] = {0};
    pid_t pid;
    CHILD("execl", fork, execl("/bin/sh", "sh", "-c", SCRIPT, (char *)0));
    CHILD("execl, many", fork,
          execl("/bin/sh", "sh", "-c", SCRIPT, "0", "1", "2", "3", "4", "5", "6", "7", "8", "9", (char *)0));
    CHILD("execlp", vfork, execlp("sh", "sh", "-c", SCRIPT, "0", "1", "2", (char *)0));
    CHILD("execle", fork, execle("/bin/sh", "sh", "-c", SCRIPT, (char *)0, envp));
    CHILD("execle, many", fork,
          execle("/bin/sh", "sh", "-c", SCRIPT, "0", "1", "2", "3", "4", (char *)0, envp));
    CHILD("execv", vfork, execv("/bin/sh", argv));
    CHILD("execvp", fork, execvp("sh", argv));
    CHILD("execve", vfork, execve("/bin/sh", argv, envp));
    CHILD("execve, nothing", fork, execve("/bin/sh", argv, none));
    CHILD("execvpe", fork, execvpe("sh", argv, envp));
    CHILD("fexecve", fork, fexecve(open("/bin/sh", O_RDONLY), argv, envp));
    CHILD("a failed exec leaves everything as it was", fork, {
        int failed = execve("/proc/nonexistent", argv, envp) == -1 && errno == ENOENT;
        if (failed)
            execv("/bin/sh", argv);
    });
    if (posix_spawn(&pid, "/bin/sh", 0, 0, argv, envp) == 0)
        ends("posix_spawn", pid);
    if (posix_spawnp(&pid, "sh", 0, 0, argv, environ) == 0)
        ends("posix_spawnp", pid);
    return system("echo system preloaded=${LD_PRELOAD:+yes}");
}
