# rsync -aHAX and its other ways to write: in place, by temporary names, with deletion and hard links to an earlier copy.
set -eu
mkdir -p from/a/b from/many
for i in $(seq 150); do echo "file $i" > "from/many/f$i"; done
echo one > from/a/one; ln from/a/one from/a/b/two; ln -s one from/a/link; ln -s /nonexistent from/absolute; mkfifo from/fifo; seq 50000 > from/big; truncate -s 2M from/holes; echo end >> from/holes; mkdir -m 2750 from/setgid; : > 'from/sp ace'
setfattr -n user.colour -v blue from/a/one; setfattr -n user.dir -v yes from/a; setfacl -m u:12345:rw from/a/one; setfacl -d -m g:54321:rx from/setgid; chmod 4711 from/big
find from -depth -exec touch -h -d '2020-02-02 02:02:02.123456789 UTC' {} +
list() { (cd "$1"; find . -printf '%p %y %m %n %s %Tt %l\n' | sort | md5sum; getfattr -dR -m - -h . | md5sum; getfacl -R -n . | md5sum); }
rsync -aHAX --numeric-ids from/ to; list from; list to; [ to/a/one -ef to/a/b/two ]; rsync -aHAXin from/ to; echo 'nothing to do'
echo more >> from/big; rm from/many/f1?; echo new > from/many/new; mv from/a/b from/a/c; chmod 600 from/a/one; setfattr -x user.dir from/a; ln -sfn two from/a/link; touch -h -d @7 from/a/link
rsync -aHAXi --delete from/ to | sort; diff -r --no-dereference from to && list to
echo more >> from/big; rsync -a --inplace --no-whole-file from/big to/; cmp from/big to/big; echo more >> from/big; rsync -a --append-verify from/big to/; cmp from/big to/big
rsync -aS from/holes to/holes2; [ "$(stat -c %b to/holes2)" -lt 1000 ] && echo 'holes stay holes'; rsync -ac --out-format=%n from/ to | sort
rsync -aH --link-dest="$PWD/to" from/ linked; [ linked/many/f1 -ef to/many/f1 ] && echo linked; rsync -a --copy-dest=../to from/ copied; rsync -a --backup --suffix=.old --delay-updates from/ to; rsync -ab --backup-dir=../backups --existing from/many/ to/many; rsync -a --delete-after --exclude 'f2*' --delete-excluded from/many/ to/many; ls to/many | wc -l; rsync -a --ignore-existing --include '*/' --include 'f3*' --exclude '*' from/ chosen; find chosen -type f | sort
rsync -a --partial-dir=.part --temp-dir="$PWD/copied" from/big to/big2; rsync -a --remove-source-files copied/ moved; find copied -type f | wc -l; printf 'a/one\nbig\n' | rsync -a --files-from=- from listed; find listed | sort; rsync -aR from/./a/c relative; find relative | sort; rsync -r --chmod=D700,F600 from/many modes; stat -c %a modes/many modes/many/f1
rsync -a from/nowhere to 2>&1 | sed 's:"[^"]*/:":; s/ (code.*//' || true; rsync -aL from/a/link deref 2>&1 | sed 's:"[^"]*/:":; s/ (code.*//' || true; rsync --list-only from/a/ | awk '{print $1, $2, $5, $6, $7}'
