# vim in a terminal of tmux: swap files, backups, undo files, writing over links, recovery.
set -eu
export TERM=xterm SHELL=/bin/sh
seq 100 > file; ln -s file link; ln file hard; printf 'set backup undofile directory=. undodir=. backupdir=. viminfofile=viminfo nofsync\n' > vimrc
tmux="tmux -f /dev/null -S $PWD/tmux.socket"
# A server ends with its last session.
$tmux new-session -d -x 80 -y 24 cat; trap '$tmux kill-server 2> /dev/null || true' EXIT
# Runs vim on a file with keys from a script, in a window of its own, and waits until it has ended.
edit() { printf "$2" > keys; $tmux new-window "vim -u vimrc -i viminfo -s keys $1 2> errors; echo \$? > status; $tmux wait-for -S done" \; wait-for done; cat status; }
edit file ':%%s/^5/five/\rGolast line\033:wq\r'; grep -c five file; tail -n 1 file; ls -A | grep -v '^\.file.un~$\|tmux' ; ls .file.un~
edit link 'ggOthrough the link\033ZZ'; head -n 1 file; readlink link; stat -c %h file
edit file 'u:w\rggyyGp:w saved\r:r !wc -l < file\r:wq\r'; head -n 1 saved; tail -n 1 file
edit 'file saved -o' ':windo %%s/1/ONE/g\r:wall\r:qall\r'; grep -c ONE file saved | sort
edit dir/new 'inew\033:call mkdir("dir")\r:w\r:q\r'; cat dir/new; edit . ':q\r'; edit file ':set backupcopy=yes\rxZZ'; edit file ':set backupcopy=no\rxZZ'; stat -c %h file hard
vim -u vimrc -es -c '%s/2/two/g' -c 'w! script' -c 'q!' file < /dev/null; grep -c two script; vim -u NONE -es -c 'set nocompatible' -c 'args file saved script' -c 'argdo normal Goend' -c 'argdo w!' -c 'qa!' < /dev/null || true; tail -qn 1 file saved script
chmod 400 file; edit file 'ggx:w!\r:q\r'; stat -c %a file; ls -A | grep -c 'sw[op]$' || echo 'no swap file left'
$tmux kill-server
# Undo files hold the time of day.
find . -name ".*.un~" -delete; rm -f viminfo keys errors status tmux.socket
