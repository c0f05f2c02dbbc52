/* Does what it is told, a line at a time, with file locks, and answers each line with one. Files are called by numbers of the
 * teller's choice.
 *
 *   open N NAME r|w|rw   dup N M   onto N M   close N   write N TEXT
 *   lock N posix|ofd|flock r|w|u START LEN     without waiting
 *   wait N posix|ofd|flock r|w|u START LEN
 *   test N posix|ofd r|w START LEN             "free", or the lock in the way: kind, start, length, process
 *   lockf N lock|tlock|ulock|test LEN
 *   raw N TYPE WHENCE START LEN                F_SETLK with numbers as they are
 *   handle restart|interrupt                   SIGUSR1 is handled, with or without SA_RESTART
 *   child COMMAND ...                          a forked child does it and ends
 *   hold, unhold                               a forked child has all descriptors meanwhile
 *   exec                                       starts this program anew, with all descriptors
 *   pid
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/wait.h>
#include <unistd.h>

enum { FILES = 16 };
static int files[FILES];
static pid_t holder;
static char *self;

static void handler(int signal) { (void)signal; }

static void answer(int result)
{
	puts(result < 0 ? strerrorname_np(errno) : "ok");
}

static short kind(const char *word)
{
	return *word == 'r' ? F_RDLCK : *word == 'w' ? F_WRLCK : F_UNLCK;
}

static void lock(int fd, int waits, const char *family, const char *word, long start, long len)
{
	if (!strcmp(family, "flock")) {
		int operation = *word == 'r' ? LOCK_SH : *word == 'w' ? LOCK_EX : LOCK_UN;
		return answer(flock(fd, operation | (waits ? 0 : LOCK_NB)));
	}
	int ofd = !strcmp(family, "ofd");
	struct flock lock = { .l_type = kind(word), .l_whence = SEEK_SET, .l_start = start, .l_len = len };
	answer(fcntl(fd, waits ? (ofd ? F_OFD_SETLKW : F_SETLKW) : (ofd ? F_OFD_SETLK : F_SETLK), &lock));
}

static void test(int fd, const char *family, const char *word, long start, long len)
{
	struct flock lock = { .l_type = kind(word), .l_whence = SEEK_SET, .l_start = start, .l_len = len };
	if (fcntl(fd, strcmp(family, "ofd") ? F_GETLK : F_OFD_GETLK, &lock) < 0)
		answer(-1);
	else if (lock.l_type == F_UNLCK)
		puts("free");
	else
		printf("%c %ld %ld %d\n", lock.l_type == F_RDLCK ? 'r' : 'w', (long)lock.l_start, (long)lock.l_len, lock.l_pid);
}

static void perform(char *line)
{
	char *words[8] = { "" };
	int count = 0;
	char *rest = line;
	for (char *word; count < 8 && (word = strsep(&rest, " "));)
		words[count++] = word;
	int n = count > 1 ? atoi(words[1]) % FILES : 0;
	if (!strcmp(words[0], "open")) {
		int flags = !strcmp(words[3], "r") ? O_RDONLY : !strcmp(words[3], "w") ? O_WRONLY : O_RDWR;
		answer(files[n] = open(words[2], flags));
	} else if (!strcmp(words[0], "dup")) {
		answer(files[atoi(words[2]) % FILES] = dup(files[n]));
	} else if (!strcmp(words[0], "onto")) {
		answer(dup2(files[n], files[atoi(words[2]) % FILES]));
	} else if (!strcmp(words[0], "close")) {
		answer(close(files[n]));
	} else if (!strcmp(words[0], "write")) {
		answer(write(files[n], words[2], strlen(words[2])));
	} else if (!strcmp(words[0], "lock") || !strcmp(words[0], "wait")) {
		lock(files[n], *words[0] == 'w', words[2], words[3], atol(words[4]), atol(words[5]));
	} else if (!strcmp(words[0], "test")) {
		test(files[n], words[2], words[3], atol(words[4]), atol(words[5]));
	} else if (!strcmp(words[0], "lockf")) {
		int command = !strcmp(words[2], "lock") ? F_LOCK : !strcmp(words[2], "tlock") ? F_TLOCK :
			      !strcmp(words[2], "ulock") ? F_ULOCK : F_TEST;
		answer(lockf(files[n], command, atol(words[3])));
	} else if (!strcmp(words[0], "raw")) {
		struct flock lock = { .l_type = atoi(words[2]), .l_whence = atoi(words[3]), .l_start = atol(words[4]),
				      .l_len = atol(words[5]) };
		answer(fcntl(files[n], F_SETLK, &lock));
	} else if (!strcmp(words[0], "handle")) {
		struct sigaction action = { .sa_handler = handler, .sa_flags = *words[1] == 'r' ? SA_RESTART : 0 };
		answer(sigaction(SIGUSR1, &action, NULL));
	} else if (!strcmp(words[0], "hold")) {
		holder = fork();
		if (holder == 0)
			for (;;)
				pause();
		answer(holder);
	} else if (!strcmp(words[0], "unhold")) {
		kill(holder, SIGKILL);
		answer(waitpid(holder, NULL, 0));
	} else if (!strcmp(words[0], "exec")) {
		char numbers[FILES][12], *arguments[FILES + 2] = { self };
		for (int i = 0; i < FILES; i++) {
			sprintf(numbers[i], "%d", files[i]);
			arguments[i + 1] = numbers[i];
		}
		execv(self, arguments);
		answer(-1);
	} else if (!strcmp(words[0], "pid")) {
		printf("%d\n", getpid());
	} else {
		puts("unknown");
	}
}

int main(int argc, char **argv)
{
	static char line[4096];
	self = argv[0];
	setvbuf(stdin, NULL, _IONBF, 0);
	setvbuf(stdout, NULL, _IOLBF, 0);
	for (int i = 0; i < FILES; i++)
		files[i] = i + 1 < argc ? atoi(argv[i + 1]) : -1;
	if (argc > 1)
		answer(0);
	while (fgets(line, sizeof line, stdin)) {
		line[strcspn(line, "\n")] = 0;
		if (strncmp(line, "child ", 6)) {
			perform(line);
			continue;
		}
		pid_t child = fork();
		if (child == 0) {
			perform(line + 6);
			fflush(stdout);
			_exit(0);
		}
		waitpid(child, NULL, 0);
	}
	return 0;
}
