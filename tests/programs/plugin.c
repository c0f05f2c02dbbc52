/* A library that is loaded at run time and works in its constructor and destructor. */
#include "work.h"

int plugin_work(const char *tag) { return work_at(".", tag); }

static void log_line(const char *what) {
    FILE *log = fopen("log", "a");
    if (log) {
        fprintf(log, "plugin %s %d\n", what, work_at(".", what));
        fclose(log);
    }
}

__attribute__((constructor)) static void loaded(void) { log_line("loaded"); }
__attribute__((destructor)) static void unloaded(void) { log_line("unloaded"); }
