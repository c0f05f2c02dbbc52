// Static objects, plugins, exceptions and cancellation in C++.
#include "work.h"
#include <cstdio>
#include <dirent.h>
#include <dlfcn.h>
#include <ftw.h>
#include <fstream>
#include <fts.h>
#include <glob.h>
#include <iostream>
#include <pthread.h>
#include <sched.h>
#include <stdexcept>
#include <string>

struct Static {
    const char *name;
    explicit Static(const char *name) : name(name) { say("constructed"); }
    ~Static() { say("destroyed"); }
    void say(const char *what) const {
        std::ofstream log("log", std::ios::app);
        log << name << ' ' << what << ' ' << work_at(".", name) << '\n';
    }
};

static Static first("first"), second("second");

static void at_exit() { first.say("at exit"); }

static int throwing_visit(const char *path, const struct stat *, int, struct FTW *) {
    if (std::string(path).find("f2") != std::string::npos) throw std::runtime_error("visited");
    return 0;
}
static int throwing_filter(const struct dirent *) { throw std::runtime_error("filtered"); }
static int throwing_glob(const char *, int) { throw std::runtime_error("globbed"); }
static int throwing_order(const void *, const void *) { throw std::runtime_error("sorted"); }

template <class F> static void catching(const char *what, F f) {
    try {
        f();
        std::cout << what << ": nothing thrown";
    } catch (const std::exception &error) {
        std::cout << what << ": " << error.what();
    }
    std::cout << ", work " << work_at(".", "catching") << ", here " << access("f1", R_OK) << std::endl;
}

static void exceptions() {
    for (int again = 0; again < 3; again++) {
        catching("nftw", [] { nftw(".", throwing_visit, 8, FTW_PHYS); });
        catching("nftw, changing directories", [] {
            int here = open(".", O_RDONLY | O_DIRECTORY);
            struct Back {
                int fd;
                ~Back() { if (fchdir(fd)) std::abort(); close(fd); }
            } back{here};
            nftw(".", throwing_visit, 8, FTW_PHYS | FTW_CHDIR);
        });
        catching("scandir", [] { struct dirent **list; scandir(".", &list, throwing_filter, alphasort); });
        catching("glob", [] { glob_t found; glob("f1/*/x", 0, throwing_glob, &found); });
        catching("qsort", [] { int numbers[] = {2, 1}; qsort(numbers, 2, sizeof *numbers, throwing_order); });
        catching("streams", [] {
            std::ifstream in;
            in.exceptions(std::ios::failbit);
            in.open("missing");
        });
    }
}

static volatile int unwound, running;
struct Guard { ~Guard() { unwound = 1; } };

static void *cancelled(void *) {
    Guard guard;
    for (;;) {
        running = 1;
        int fd = open("f1", O_RDONLY);
        if (fd >= 0) close(fd);
    }
}

static void cancellation() {
    int count = 0;
    for (int again = 0; again < 20; again++) {
        pthread_t thread;
        unwound = running = 0;
        pthread_create(&thread, nullptr, cancelled, nullptr);
        while (!running) sched_yield();
        pthread_cancel(thread);
        pthread_join(thread, nullptr);
        count += unwound;
    }
    std::cout << "unwound " << count << ", work " << work_at(".", "unwound") << std::endl;
}

static void plugins(const char *path) {
    for (int flags : {RTLD_NOW, RTLD_LAZY | RTLD_GLOBAL, RTLD_NOW | RTLD_DEEPBIND}) {
        void *plugin = dlopen(path, flags);
        if (!plugin) {
            std::cout << dlerror() << std::endl;
            return;
        }
        auto call = reinterpret_cast<int (*)(const char *)>(dlsym(plugin, "plugin_work"));
        std::cout << "plugin: " << call("called") << std::endl;
        std::cout << "dlclose: " << dlclose(plugin) << std::endl;
    }
}

int main(int argc, char **argv) {
    std::string what = argv[1];
    atexit(at_exit);
    if (what == "exceptions") exceptions();
    else if (what == "cancel") cancellation();
    else if (what == "plugins") plugins(argv[2]);
    std::ofstream("made by main") << "text";
    return 0;
}
