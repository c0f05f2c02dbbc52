# What coreutils has for files and their contents: each program at least once, with the options that change calls.
set -eu
fails() { if "$@"; then echo "succeeded: $*"; return 1; else echo "status $?"; fi; }
mkdir work; cd work
seq 1000 > numbers; head -c 100000 /dev/zero | tr '\0' 'z' > zs; printf 'b\na\nc\na\n' > letters; printf 'a\tx\nb\ty\n' > tabs

# contents
cat -n letters; tac letters; nl letters; head -n 2 letters; head -c 5 numbers; tail -n 2 numbers; tail -c 5 numbers; tail -n +999 numbers
cut -f 2 tabs; cut -c 1 letters; paste letters tabs; join tabs tabs; comm -12 <(sort letters) <(sort tabs); sort letters; sort -u -o sorted letters; sort -m sorted sorted; sort -c sorted
sort -S 1M -T . --parallel=2 -R numbers numbers | wc -l; uniq -c sorted; uniq sorted out; expand tabs; unexpand -a tabs; fmt -w 20 numbers | head -n 2; fold -w 3 numbers | tail -n 1; pr -h title -l 20 letters | sed 1,3d; od -c letters; wc numbers letters zs
shuf -n 5 numbers | wc -l; numfmt --to=iec < numbers | tail -n 1; tsort tabs; ptx letters > permuted; wc -l < permuted; tr a-z A-Z < letters; base64 letters; base32 letters; basenc --base16 letters
for sum in cksum sum b2sum md5sum sha1sum sha224sum sha256sum sha384sum sha512sum; do $sum letters zs; done
sha256sum letters zs > sums; sha256sum -c sums; echo >> letters; fails sha256sum -c --status sums; md5sum --tag letters
split -n 4 zs part.; split -l 300 -d --additional-suffix=.txt numbers n.; split -b 30000 --filter='wc -c' zs; cat part.* | cmp - zs; csplit -k numbers /500/ '{0}' | paste -s; ls
tee copy1 copy2 < letters > copy3; tee -a copy1 < tabs > /dev/null; wc -l copy?; cmp copy2 copy3; fails cmp copy1 copy2
dd if=zs of=dd bs=1k count=7 skip=3 seek=2 status=none; dd if=letters of=dd bs=1 seek=10 conv=notrunc,fsync status=none; dd if=zs of=direct bs=4096 count=4 oflag=direct status=none 2>&1 || echo no direct; dd if=numbers of=dd oflag=append conv=notrunc status=none; sum dd; wc -c direct

# making, copying, moving
mkdir -p a/b/c a/d 'with space' -m 755; mkdir -m 1777 sticky; mkdir -v a/e; fails mkdir a; fails mkdir x/y; mkfifo -m 600 fifo; mknod node p; stat -c '%F %a %n' sticky fifo node a/b
t=$(mktemp -d -p . dir.XXXXXX); t2=$(mktemp "$t/file.XXXX"); stat -c '%a %F' "$t" "$t2"; rm -r "$t"
touch -d '2021-02-03 04:05:06.789 UTC' stamped; touch -r stamped copied-stamp; touch -c not-made; touch -a -d @5 stamped; touch -m -t 202001010000.30 stamped; stat -c '%x %y %n' stamped copied-stamp; touch a/f{1..30}
cp letters c1; cp -p stamped c2; cp -l letters c3; cp -s letters c4; cp -R a acopy; cp -a --preserve=all 'with space' sp; cp -t a/d letters tabs; cp -u letters c1; cp -b letters c1; cp --backup=numbered letters c1; cp -P c4 c5; cp -L c4 c6; cp --parents a/d/letters sp; cp -RT a/d tdir; cp --reflink=auto zs r1; cp --sparse=always zs r2; cp --remove-destination letters c6; cp --attributes-only numbers c7; cp -n numbers c1; fails cp a b; fails cp nowhere b; fails cp letters letters; fails cp -R a a/b
mv c1 m1; mv -n m1 c2; mv -v a/f1 a/f2 sp; mv -b tabs m1; mv -T tdir a/tdir; fails mv a a/b; fails mv nowhere x; fails mv a letters; mv --strip-trailing-slashes sp/ sp2; mv fifo fifo2; mv --exchange a sp2 2> /dev/null || mv -u numbers numbers2
ln letters l1; ln -s letters l2; ln -sr a/b/c a/rel; ln -sf nowhere l2; ln -sn a l3; ln -sfn sp2 l3; ln -L c4 l4; ln -P l2 l5; ln -t a/b zs; ln -b letters l1; link zs l6; fails ln a l7; fails ln nowhere l8; fails link zs l6; readlink l2 l3 a/rel; readlink -f a/rel | sed "s:$PWD:HERE:"; readlink -m x/../y | sed "s:$PWD:HERE:"; realpath --relative-to=a/b l1 zs; realpath -s l2 | sed "s:$PWD:HERE:"; fails readlink zs; fails realpath -e l2
install -m 640 letters i1; install -d i2/i3 i4; install -D -t i5/i6 letters zs; install -C -m 640 letters i1; install -b letters i1; stat -c '%a %s %n' i1 i5/i6/*
chmod 600 i1; chmod u+x,g=r,o= i1; chmod -R go-rwx i2; chmod --reference=letters i1; chmod +t i4; chmod g+s i4; mkdir i4/inherits; stat -c '%A %n' i1 i2 i2/i3 i4; fails chmod 644 nowhere; chmod -v a+r i1
chown --from=:0 0:0 i1 || true; chgrp "$(id -g)" i1; chown -h "$(id -u)" l2; chown -R "$(id -u):$(id -g)" i2; fails chown "$(id -u)" nowhere
truncate -s 5000 tr; truncate -s +10 tr; truncate -s -1000 tr; truncate -r letters tr2; truncate -s '<100' tr; truncate -o -s 1 tr3; stat -c '%s %n' tr tr2; fails truncate -s 1 a; shred -n 1 -z tr; sum tr; shred -u tr2; sync letters; sync -d letters; sync -f letters

# looking
ls -l --time-style=+ letters zs l2 fifo2 | awk '{print $1, $2, $5, $6, $7, $8}'; ls -A a; ls -1 -S -r i5/i6; ls -RF a | head -n 20; ls -i letters l1~ | awk '{print $1}' | uniq | wc -l; ls -d */; dir -1 a; vdir -Q i5/i6 | awk '{print $NF}'; ls --group-directories-first -p | head -n 4; ls -Z letters > /dev/null 2>&1 || true; fails ls nowhere; ls -U1 a | sort | tail -n 2; ls -t stamped zs
stat -c '%n %F %a %h %s %b' letters zs l2; stat -c '%n %F %a %h' a/b; stat -L -c %F l3; stat -f -c %l .; fails stat nowhere; stat -t letters | wc -w; stat --printf '%N\n' l2
test -f letters -a -d a -a -p fifo2 -a -h l2 -a ! -e l2 -a -s zs && echo tests; [ letters -ef letters ] && [ zs -nt stamped ] && [ -x a ] && [ -u i1 ] || echo no
du -s --apparent-size zs | cut -f 1; du -a --inodes a | sort -k 2 | tail -n 2; du -b --max-depth=1 i5 | cut -f 2 | sort; du -b i5/i6/*; df --output=target . | wc -l; df -i letters | wc -l; pathchk letters; fails pathchk -p "$(printf 'n%.0s' {1..300})"; basename a/b/c.txt .txt; dirname a/b; pwd -P | sed 's:.*/::'
(cd a/b && pwd | sed 's:.*/a/:a/:' && cat ../../letters ./../d/letters | wc -l); env -C a ls | head -n 1; nice cat letters > niced; nohup cat letters > nohupped 2> /dev/null; timeout 60 cat letters; stdbuf -oL cat letters; chroot . /bin/true 2> /dev/null || echo 'nothing to run'

# removing
unlink l6; fails unlink a; rm c2; rm -v c3 c4; rm -f nowhere; fails rm nowhere; fails rm a; rmdir i2/i3; fails rmdir a; fails rmdir letters; mkdir -p p/q/r; rmdir -p p/q/r; rm -d i2; rm -r i4; rm -rf acopy; rm -rv i5 | sort; echo y | rm -i i1; chmod 500 a/d; rm -rf a; rm --one-file-system -rf sp2; rm -- *.txt part.*
ls -A
