//! The program that performs scripts, and listings, which are the same program with one script written out.

use std::fmt::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::calls::{self, CALLS};
use super::script::Script;
use crate::mount::said;

const COMMON: &str = include_str!("performer.c");

/// How the performer gets arguments from the script.
const FROM_SCRIPT: &str = r#"
static struct step { int actor, call; long number[8]; char *name[8]; } *S;
static unsigned S_length;

static int actor_of(unsigned i) { return S[i].actor; }
static unsigned length(void) { return S_length; }

static void load(void)
{
    struct stat s;
    fstat(SCRIPT, &s);
    char *text = malloc(s.st_size + 1), *line = text;
    text[pread(SCRIPT, text, s.st_size, 0)] = 0;
    S = calloc(s.st_size / 4 + 1, sizeof *S);
    while (*line) {
        struct step *step = S + S_length++;
        char *end = strchr(line, '\n'), *next;
        *end = 0;
        step->actor = strtol(line, &next, 10);
        step->call = strtol(next + 1, &next, 10);
        for (int i = 0; *next == ' '; i++) {
            char *word = next + 1;
            next = strchrnul(word, ' ');
            if (strchr(":RXP", *word) && *word)
                step->name[i] = strndup(word, next - word);
            else
                step->number[i] = strtol(word, NULL, 10);
        }
        line = end + 1;
    }
}

static char *name_of(char *token)
{
    return *token == ':' ? token + 1 : *token == 'R' ? R(token + 1) : *token == 'X' ? X(atoi(token + 1)) : P(atoi(token + 1));
}

static long perform(unsigned i)
{
    struct stat s;
    struct statx x;
    struct statvfs v;
    switch (S[i].call) {
"#;

/// The same for a listing.
const WRITTEN_OUT: &str = r"
static long perform(unsigned i)
{
    struct stat s;
    struct statx x;
    struct statvfs v;
    switch (i) {
";

const END: &str = "    }\n    return -2;\n}\n";

/// The performer's source.
fn source() -> String {
    let mut text = COMMON.to_owned() + FROM_SCRIPT;
    for (index, call) in CALLS.iter().enumerate() {
        let body = calls::substituted(call, |argument| match call.arguments[argument].is_text() {
            true => format!("name_of(S[i].name[{argument}])"),
            false => format!("S[i].number[{argument}]"),
        });
        // Writing to a string does not fail.
        let _ = writeln!(text, "    case {index}: return {body};");
    }
    text + END
}

/// Compiles the performer into a directory.
///
/// # Panics
/// The compiler is missing or fails.
pub fn compile(directory: &Path) -> PathBuf {
    compiled(directory, "performer", &source())
}

/// Compiles a listing, or the performer, into a directory.
///
/// # Panics
/// The compiler is missing or fails.
pub fn compiled(directory: &Path, name: &str, source: &str) -> PathBuf {
    let program = directory.join(name);
    let source_file = program.with_extension("c");
    std::fs::write(&source_file, source).unwrap();
    let output = Command::new("gcc")
        .args([
            "-O1",
            "-Wall",
            "-Wno-unused-result",
            "-Wno-unused-function",
            "-Wno-sequence-point",
            "-pthread",
            "-o",
        ])
        .args([&program, &source_file])
        .output()
        .expect("gcc is installed");
    assert!(output.status.success(), "{}", said(&output));
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
    program
}

/// A script as a C program. `remark` says something of each step.
pub fn listing(script: &Script, remark: impl Fn(usize) -> String) -> String {
    let mut text = String::from(
        "/*\n * cc -pthread listing.c -o listing; head -c 4096 /dev/zero >turns; chmod 666 turns; ./listing prepare DIR, where DIR \
         is an\n * absolute path that does not exist yet; then, both at once and with their output appended to one file, each \
         preloaded\n * (finesse run) or not:\n",
    );
    for (process, ordinary) in script.ordinary.iter().enumerate() {
        let _ = writeln!(
            text,
            " *   ./listing DIR {process} turns    {}{}",
            if *ordinary {
                "as an ordinary user (setpriv --reuid=65534 --regid=65534 --groups=65533,100)"
            } else {
                "as root"
            },
            if script.preloaded[process] { ", preloaded where roads are mixed" } else { "" },
        );
    }
    text.push_str(" */\n");
    text.push_str(COMMON);
    let actors: Vec<_> = script.steps.iter().map(|step| step.actor.to_string()).collect();
    let _ = write!(
        text,
        "\nstatic const int actors[] = {{{}}};\nstatic int actor_of(unsigned i) {{ return actors[i]; }}\n\
         static unsigned length(void) {{ return sizeof actors / sizeof *actors; }}\nstatic void load(void) {{}}\n",
        actors.join(", ")
    );
    text + WRITTEN_OUT + &steps(script, remark) + END
}

/// The steps of a listing alone.
pub fn steps(script: &Script, remark: impl Fn(usize) -> String) -> String {
    let mut text = String::new();
    for (index, step) in script.steps.iter().enumerate() {
        let remark = remark(index);
        let _ = writeln!(
            text,
            "    case {index}: /* process {}, thread {} */ return {};{}{remark}",
            step.actor / 10,
            step.actor % 10,
            script.listed(index),
            if remark.is_empty() { "" } else { "  // " },
        );
    }
    text
}
