# find and xargs on a tree with one of everything.
set -eu
mkdir -p t/{a,b}/{c,d,e}/{1..5} 't/sp ace' t/empty
for d in t/*/*/[1-5]; do echo "$d" > "$d/file"; head -c $((RANDOM % 1 + 5000)) /dev/zero > "$d/big"; done
ln -s ../a t/b/link; ln -s nowhere t/dangling; ln -s . t/self; ln t/a/c/1/file t/hard; mkfifo t/fifo; : > 't/sp ace/x y'; : > "t/new
line"; chmod 711 t/a; chmod 4755 t/b/c/1/file; chmod 600 t/b/c/2/file; touch -d '2001-01-01' t/a/d/*/file; touch -d '2002-01-01' t/a/c/*/file; truncate -s 1M t/sparse
find t | sort; find t -type d | wc -l; find t -type f -size +4k | sort; find t -type f -size -100c | wc -l; find t -type l -printf '%p -> %l\n' | sort; find t -type p
find -L t -maxdepth 3 -type f 2> errors | sort | head -n 40; sed 's/.*loop/loop/' errors | sort -u; find -H t/self -maxdepth 1 | sort; find t -xtype l; find t -lname '*a'
find t -newer t/a/d/1/file -type f ! -newer t/a/c/1/file | sort; find t -perm 4755; find t -perm -u=rwx,g=x -type d | sort; find t -perm /7000; find t -links +1 -type f | sort; find t -samefile t/hard | sort; find t -empty | sort
find t -name '[1-3]' -prune -o -type f -print | sort; find t -path '*/c/*' -iname FILE | sort; find t -regex '.*/[ab]/c/[0-9]/file' | sort; find t -depth -name 1 | sort; find t -mindepth 2 -maxdepth 2 | sort
find t -type f -printf '%P %s %m %n %y %d\n' | sort; find t -type d -printf '%p %n\n' | sort; find t -name big -printf '%f %h %k\n' | sort | head -n 3; find t -user "$(id -un)" -readable -writable | wc -l; find t -executable -type f
find t -name file -exec cat {} \; | sort; find t -name file -exec cat {} + | sort; find t -name 1 -execdir basename {} \; | sort; find t -name 1 -execdir ls {} + | sort; find t -name file -exec grep -q a/c {} \; -print | sort; find t -name 'x y' -ok rm {} \; < /dev/null 2> /dev/null; find t -type f -exec test -s {} \; -printf s | wc -c
find t -print0 | xargs -0 stat -c '%F' | sort | uniq -c; find t -name file | sort | xargs -n 2 cat; find t -name big | xargs -P 4 -n 3 sum | sort; find t -name file | sort | xargs -I{} echo '<{}>'; find t -name file -print0 | sort -z | xargs -0 -L 1 wc -c; echo t/hard t/fifo | xargs -t ls 2>&1; xargs -a <(find t -name file) cat | wc -l; find t -name nothing | xargs -r cat
find t -name big -fprint list; wc -l < list; find t -fprintf sizes '%s\n' -fls listing; sort -n sizes | tail -n 2; wc -l < listing; rm list sizes listing errors; find t -files0-from /dev/null 2> /dev/null || true
find t -newermt 2000-06-01 ! -newermt 2001-06-01 -type f | wc -l; find t -mmin -600 -name big | wc -l; find nowhere 2>&1 || echo "status $?"; find t -inum "$(stat -c %i t/hard)" | sort; find t -size 1M -type f | sort; find t -sparse 2> /dev/null || true; find t -quit; find t -name self -follow 2> /dev/null || true
find t -name '[1-2]' -type d -exec rm -r {} +; find t -type f -delete; find t | sort; find t -depth -empty -delete; find . | sort
