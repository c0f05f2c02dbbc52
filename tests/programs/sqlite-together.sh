# sqlite3, three processes at a time: two of this script, and one of sqlite-other.sh, which is not preloaded.
set -eu
sql() { sqlite3 -cmd '.timeout 60000' "$@"; }
for mode in delete wal; do
    sql "$mode.db" "PRAGMA journal_mode = $mode; CREATE TABLE t (id INTEGER PRIMARY KEY, who TEXT, n INTEGER); CREATE INDEX i ON t (who, n);"
    : > "together-$mode"
    for n in $(seq 60); do sql "$mode.db" "BEGIN IMMEDIATE; INSERT INTO t (who, n) VALUES ('here', $n); COMMIT;"; done &
    for n in $(seq 60); do sql "$mode.db" "SELECT count(*) >= 0 FROM t WHERE who = 'there';"; done | sort -u
    wait
    until [ -e "together-$mode.done" ] || [ -e other-failed ]; do sleep 0.02; done
    sql "$mode.db" "SELECT who, count(*), sum(n), count(DISTINCT id) FROM t GROUP BY who; PRAGMA integrity_check;"
    sql "$mode.db" .dump | grep -c INSERT
done
# Which rows got which numbers is chance.
rm *.db
