# The other process of sqlite-together.sh.
set -eu
# The other one does not wait for who has failed.
trap '[ $? = 0 ] || : > other-failed' EXIT
for mode in delete wal; do
    until [ -e "together-$mode" ]; do sleep 0.02; done
    for n in $(seq 60); do sqlite3 -cmd '.timeout 60000' "$mode.db" "BEGIN IMMEDIATE; INSERT INTO t (who, n) VALUES ('there', $n); COMMIT;"; done
    sqlite3 -cmd '.timeout 60000' "$mode.db" 'PRAGMA integrity_check;'
    : > "together-$mode.done"
done
