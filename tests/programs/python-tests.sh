# Python's own regression tests for files, with the mount as the place for their files.
set -u
mkdir tmp; export TMPDIR="$PWD/tmp"
for test in test_os test_posix test_shutil test_tempfile test_mmap test_fileio; do
    # A test that fails says so by name; durations and addresses are left out.
    /usr/bin/python3 -m test -v --tempdir "$TMPDIR" "$test" > "$test.log" 2>&1; echo "$test: status $?"
    sed -n 's/^\(test_[A-Za-z0-9_]* (.*)\) \.\.\. \(ok\|FAIL\|ERROR\|expected failure\|skipped.*\)$/\1: \2/p' "$test.log" | sort; grep -E '^Ran [0-9]+ tests' "$test.log" | cut -d ' ' -f 1-3; grep -E '^(FAIL|ERROR):' "$test.log" | sort
    rm "$test.log"
done
rm -rf tmp
