//! A Python program that evaluates what it is told to, so that a test can have a preloaded program do one thing after another.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// Evaluates each line that it reads; the answer is one line.
const LOOP: &str = r"
import errno, os, sys
for line in sys.stdin:
    try:
        answer = eval(line)
    except OSError as error:
        answer = errno.errorcode[error.errno]
    print(answer, flush=True)
";

/// A program that runs beside the test. It is killed at the end.
#[derive(Debug)]
pub struct Python {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Python {
    /// Starts it: `command` runs `/usr/bin/python3`, and `definitions` are at its disposal.
    ///
    /// # Panics
    /// It cannot be started.
    pub fn start(mut command: Command, definitions: &str) -> Self {
        let script = format!("{definitions}\n{LOOP}");
        let mut child =
            command.args(["-c", &script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (orders, answers) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Self { child, orders, answers: BufReader::new(answers) }
    }

    /// What an expression is; the name of the errno if that fails.
    ///
    /// # Panics
    /// The program has ended.
    pub fn says(&mut self, expression: &str) -> String {
        writeln!(self.orders, "{expression}").unwrap();
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        assert!(!line.is_empty(), "{expression}: the program has ended");
        line.trim_end().to_owned()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        // Fails when it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
