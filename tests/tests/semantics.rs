//! What programs in guests rely on, beyond what POSIX's suite and the differential test look at.
//!
//! The tests through a mount need root, loop devices and /dev/fuse, hence `#[ignore]`: `make test` runs
//! them by name.

use anyhow::{Context, Result, ensure};
use kfs::{Error, Filesystem, Inode, MountOptions, NewNode, RenameMode};
use kfs_disk::{BlockDevice, MemoryDevice};
use kfs_tests::guest::{Daemon, KernelMount, Workspace, e2fsck};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::ControlFlow;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

const FILE: u16 = 0o100_644;
const DIRECTORY: u16 = 0o040_755;

fn volume(block_size: u32) -> (Arc<MemoryDevice>, Arc<Filesystem>) {
    let device = Arc::new(MemoryDevice::new(64 << 20));
    let options = mkfs::Options {
        block_size: Some(block_size),
        inodes_count: Some(30_000),
        ..mkfs::Options::default()
    };
    mkfs::format(&*device, &options).expect("formats");
    let fs = open(&device);
    (device, fs)
}

fn open(device: &Arc<MemoryDevice>) -> Arc<Filesystem> {
    Filesystem::open(
        Arc::clone(device) as Arc<dyn BlockDevice>,
        MountOptions::default(),
    )
    .expect("opens")
}

fn node(mode: u16) -> NewNode<'static> {
    NewNode {
        mode,
        ..NewNode::default()
    }
}

/// Up to `count` names from `cookie` on, and where to go on; `None` at the end.
fn some_names(
    fs: &Filesystem,
    directory: &Inode,
    cookie: u64,
    count: usize,
) -> (Vec<String>, Option<u64>) {
    let (mut names, mut next) = (Vec::new(), None);
    fs.list(directory, cookie, &mut |entry| {
        names.push(String::from_utf8_lossy(entry.name).into_owned());
        next = Some(entry.cookie);
        if names.len() < count {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    })
    .expect("lists");
    (names, next)
}

/// Between two calls of readdir names come, go and are renamed, blocks split and the tree grows: names
/// that stay are listed once, names that were gone before the listing began never.
#[test]
fn listings_hold_what_stays_while_names_come_and_go() {
    // From one block to a tree of two levels (1 KiB blocks).
    for (block_size, stay) in [(4096, 10), (4096, 100), (1024, 300), (1024, 6000)] {
        let (_, fs) = volume(block_size);
        let root = fs.root().expect("root");
        let directory = fs.create(&root, b"d", &node(DIRECTORY)).expect("makes");
        let make = |name: &str| {
            fs.create(&directory, name.as_bytes(), &node(FILE))
                .expect("creates");
        };
        let staying: BTreeSet<String> = (0..stay).map(|number| format!("stays-{number}")).collect();
        staying.iter().for_each(|name| make(name));
        for number in 0..stay {
            make(&format!("goes-{number}"));
            make(&format!("gone-{number}"));
            fs.unlink(&directory, format!("gone-{number}").as_bytes())
                .expect("deletes");
        }

        let mut seen: BTreeMap<String, usize> = BTreeMap::new();
        let (mut cookie, mut round) = (0, 0);
        loop {
            let (names, next) = some_names(&fs, &directory, cookie, 1 + stay / 50);
            for name in names {
                *seen.entry(name).or_default() += 1;
            }
            let Some(next) = next else {
                break;
            };
            cookie = next;
            // Enough come to split every block of the directory; not for ever, they are listed too.
            for number in 0..if round < 500 { 8 } else { 0 } {
                make(&format!("comes-{round}-{number}-{}", "x".repeat(60)));
            }
            fs.unlink(&directory, format!("goes-{round}").as_bytes())
                .ok();
            let renamed = format!("goes-{}", stay - 1 - round % stay);
            let to = format!("renamed-{round}");
            let mode = RenameMode::NoReplace;
            fs.rename(
                &directory,
                renamed.as_bytes(),
                &directory,
                to.as_bytes(),
                mode,
            )
            .ok();
            round += 1;
            assert!(round < 100_000, "the listing does not end");
        }
        for name in &staying {
            assert_eq!(seen.get(name), Some(&1), "{name} of {stay}");
        }
        assert!(!seen.keys().any(|name| name.starts_with("gone-")));
        let ever = |name: &&String| !name.starts_with("comes-") && !name.starts_with("renamed-");
        assert!(
            seen.iter()
                .filter(|(name, _)| ever(name))
                .all(|(_, times)| *times == 1)
        );
    }
}

/// The number of a deleted file is used again; who still has the old handle (NFS, a guest) is told.
#[test]
fn an_old_handle_does_not_reach_a_new_file() {
    let (device, fs) = volume(4096);
    let root = fs.root().expect("root");
    let mut old = Vec::new();
    for number in 0..50 {
        let name = format!("f{number}").into_bytes();
        let inode = fs.create(&root, &name, &node(FILE)).expect("creates");
        old.push((inode.nr(), inode.generation()));
        drop(inode);
        fs.unlink(&root, &name).expect("deletes");
        fs.sync().expect("syncs");
    }
    let mut new = Vec::new();
    for number in 0..50 {
        let name = format!("g{number}").into_bytes();
        let inode = fs.create(&root, &name, &node(FILE)).expect("creates");
        new.push((inode.nr(), inode.generation()));
    }
    let numbers: BTreeSet<_> = new.iter().map(|(nr, _)| *nr).collect();
    assert!(
        old.iter().any(|(nr, _)| numbers.contains(nr)),
        "none is used again"
    );
    let all: BTreeSet<_> = old.iter().chain(&new).collect();
    assert_eq!(all.len(), 100, "a number comes twice with one generation");
    let judge = |fs: &Filesystem| {
        for (nr, generation) in &old {
            let found = fs.inode(*nr, *generation);
            assert!(matches!(found, Err(Error::Stale)), "{nr:?}: {found:?}");
        }
        for (nr, generation) in &new {
            fs.inode(*nr, *generation).expect("is there");
        }
    };
    judge(&fs);
    drop(root);
    fs.close().expect("closes");
    judge(&open(&device));
}

/// A fresh image, mounted by kfsd so that everybody gets to it.
struct Mounted {
    workspace: Workspace,
    image: PathBuf,
    dir: PathBuf,
    daemon: Option<Daemon>,
}

impl Mounted {
    fn new() -> Result<Self> {
        let workspace = Workspace::new()?;
        let image = workspace.make_image("256M", &[])?;
        let dir = workspace.path("mnt");
        fs::create_dir(&dir)?;
        let above = dir.parent().context("the workspace")?;
        fs::set_permissions(above, fs::Permissions::from_mode(0o755))?;
        Ok(Self {
            workspace,
            image,
            dir,
            daemon: None,
        })
    }

    fn mount(&mut self) -> Result<()> {
        let text = |path: &Path| path.to_str().map(str::to_owned).context("UTF-8");
        let arguments = [
            "--image",
            &text(&self.image)?,
            "--mount",
            &text(&self.dir)?,
            "--control-socket",
            "none",
        ];
        self.daemon = Some(Daemon::start(&self.workspace, &arguments, &[&self.dir])?);
        Ok(())
    }

    /// Ends the daemon; e2fsck finds nothing.
    fn unmount(&mut self) -> Result<()> {
        self.daemon.take().context("is mounted")?.stop()?;
        e2fsck(&self.image)
    }

    fn linux(&self) -> Result<KernelMount> {
        KernelMount::with_options(&self.workspace, &self.image, "linux", "loop")
    }

    fn script(&self, lines: &str) -> Result<()> {
        run_script(&self.dir, lines)
    }
}

/// Does a script on a fresh image: first Linux's ext4 serves it, which shows that the script is right,
/// then kfsd serves another.
fn on_both(lines: &str) -> Result<()> {
    let linux = Mounted::new()?;
    let mount = linux.linux()?;
    run_script(mount.dir(), lines).context("Linux's ext4")?;
    drop(mount);
    let mut mounted = Mounted::new()?;
    mounted.mount()?;
    mounted.script(lines).context("kfs")?;
    mounted.unmount()
}

/// Does lines of a script in a folder, and says which did not end as they should: "ok N COMMAND" or "no N
/// COMMAND", N being the user who tries.
fn run_script(dir: &Path, lines: &str) -> Result<()> {
    let mut wrong = Vec::new();
    for line in lines.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let mut words = line.splitn(3, ' ');
        let (wanted, user, command) = (words.next(), words.next(), words.next());
        let (Some(wanted), Some(user), Some(command)) = (wanted, user, command) else {
            anyhow::bail!("no line of a script: {line}");
        };
        let output = Command::new("setpriv")
            .args([format!("--reuid={user}"), format!("--regid={user}")])
            .arg("--clear-groups")
            .args(["bash", "-c", command])
            .current_dir(dir)
            .output()?;
        let is_done = output.status.success();
        if is_done != (wanted == "ok") {
            wrong.push(format!(
                "{line}\n{}",
                String::from_utf8_lossy(&output.stderr)
            ));
        }
    }
    ensure!(wrong.is_empty(), "these went wrong:\n{}", wrong.join("\n"));
    Ok(())
}

#[test]
#[ignore = "needs root and /dev/fuse: make test"]
fn directories_decide_who_may_do_what() -> Result<()> {
    on_both(
        r#"
        ok 0 mkdir -m 1777 sticky && mkdir -m 2777 group && chgrp 7 group && mkdir -m 755 closed && touch closed/f
        ok 1000 echo a > sticky/a
        no 1001 rm -f sticky/a
        no 1001 mv sticky/a sticky/b
        ok 1001 touch sticky/c
        no 1001 mv -T sticky/c sticky/a
        ok 0 rm sticky/c
        ok 1000 mv sticky/a sticky/b && rm sticky/b
        ok 1000 touch group/f && [ $(stat -c %g group/f) = 7 ]
        ok 1000 mkdir group/d && [ $(stat -c %g:%a group/d) = 7:2755 ]
        ok 1000 mkdir group/d/e && [ $(stat -c %g:%a group/d/e) = 7:2755 ]
        ok 1000 install -m 2755 /bin/true group/x && [ $(stat -c %a group/x) = 755 ]
        no 1000 touch closed/g
        no 1000 echo a > closed/f
        ok 1000 cat closed/f
        ok 0 chmod 700 closed
        no 1000 cat closed/f
        no 1000 ls closed
        ok 0 chmod 711 closed
        ok 1000 cat closed/f
        no 1000 ls closed
        ok 0 chmod 744 closed
        no 1000 cat closed/f
        "#,
    )
}

#[test]
#[ignore = "needs root and /dev/fuse: make test"]
fn access_lists_are_inherited() -> Result<()> {
    on_both(
        r#"
        ok 0 mkdir -m 755 d && setfacl -m d:u:1000:rwx,d:g:7:r-x,d:o::--- d
        ok 0 umask 077 && touch d/f && [ "$(getfacl -cEn d/f | tr '\n' ' ')" = "user::rw- user:1000:rwx group::r-x group:7:r-x mask::rw- other::---  " ]
        ok 0 mkdir d/e && [ "$(getfacl -cEn d/e | grep -c '^default:')" = 6 ]
        ok 1000 echo a > d/e/f
        ok 0 touch d/e/g
        ok 1000 echo b >> d/e/g
        no 1001 cat d/e/g
        ok 0 setfacl -m u:1001:r d/e/g && setfacl -m u:1001:x d/e
        ok 1001 cat d/e/g
        no 1001 echo c >> d/e/g
        ok 0 chmod 600 d/e/g && [ "$(getfacl -cEn d/e/g | grep mask)" = mask::--- ]
        no 1000 cat d/e/g
        ok 0 setfacl -k d/e && touch d/e/h && [ $(stat -c %a d/e/h) = 644 ]
        "#,
    )
}

#[test]
#[ignore = "needs root and /dev/fuse: make test"]
fn changes_take_privileges_away() -> Result<()> {
    // A stat(2) for the mode alone would get what Linux has in its cache for up to a second more.
    let mode = "stat -c '%a %s' f | cut -d' ' -f1";
    let mut script = String::new();
    // How a file is changed by one who may write it, but has no privileges.
    for change in [
        "echo a >> f",
        "truncate -s 3 f",
        "truncate -s 0 f",
        "fallocate -l 100000 f",
        "fallocate -p -o 0 -l 4096 f",
        "dd if=/dev/zero of=f conv=notrunc bs=10 count=1 status=none",
        "cp --reflink=never other f",
    ] {
        script += &format!(
            r#"
            ok 0 cp /bin/true f && cp /bin/true other && chmod 6777 f && setcap cap_net_raw+ep f && [ $(stat -c %a f) = 6777 ]
            ok 1000 {change}
            ok 0 [ $({mode}) = 777 ] && [ -z "$(getcap f)" ]
            "#
        );
    }
    script += r#"
        ok 0 cp /bin/true f && chmod 6777 f && setcap cap_net_raw+ep f && echo a >> f
        ok 0 [ $(stat -c %a f) = 6777 ] && [ -z "$(getcap f)" ]
        ok 0 setcap cap_net_raw+ep f && chown 1000 f && [ $(stat -c %a f) = 777 ] && [ -z "$(getcap f)" ]
        ok 0 chmod 6777 f && cat f > /dev/null && mv f g && [ $(stat -c %a g) = 6777 ]
        "#;
    on_both(&script)
}

/// Files that are replaced or deleted while open.
#[test]
#[ignore = "needs root and /dev/fuse: make test"]
fn open_files_outlive_their_names() -> Result<()> {
    let free = "stat -f -c %f:%d .";
    on_both(&format!(
        r#"
        ok 0 sync -f . && {free} > /tmp/kfs-free.$PPID
        ok 0 echo old > a && echo new > b && exec 3<>a && mv b a && [ "$(cat /proc/self/fd/3)" = old ] && [ "$(cat a)" = new ]
        ok 0 exec 3<>a && rm a && head -c 3000000 /dev/zero >&3 && [ $(stat -Lc %h:%s /proc/self/fd/3) = 0:3000000 ] && [ ! -e a ]
        ok 0 exec 3<>c && rm c && truncate -s 5 /proc/self/fd/3 && chmod 600 /proc/self/fd/3 && [ $(stat -Lc %a:%s /proc/self/fd/3) = 600:5 ]
        ok 0 mkdir d && cd d && rmdir ../d && [ -z "$(ls)" ] && ! touch x && ! mkdir y
        ok 0 mkdir e f && exec 3<e && mv -T f e && [ "$(stat -Lc %h /proc/self/fd/3)" = 0 ]
        ok 0 rmdir e && sync -f . && [ "$({free})" = "$(cat /tmp/kfs-free.$PPID)" ]; r=$?; rm /tmp/kfs-free.$PPID; exit $r
        "#
    ))
}

/// What a user may do to immutable and append-only files and folders.
const FLAGGED: &str = r#"
    no 0 echo a > fixed/f
    no 0 echo a >> fixed/f
    no 0 truncate -s 0 fixed/f
    no 0 fallocate -l 100 fixed/f
    no 0 chmod 600 fixed/f
    no 0 chown 5 fixed/f
    no 0 touch fixed/f
    no 0 setfattr -n user.a -v b fixed/f
    no 0 rm -f fixed/f
    no 0 mv fixed/f fixed/g
    no 0 ln fixed/f fixed/g
    no 0 touch g && mv -T g fixed/f
    ok 0 cat fixed/f
    no 0 echo a > log/f
    ok 0 echo a >> log/f
    no 0 truncate -s 0 log/f
    no 0 dd if=/dev/zero of=log/f conv=notrunc bs=1 count=1 status=none
    no 0 fallocate -p -o 0 -l 1 log/f
    no 0 chmod 600 log/f
    no 0 rm -f log/f
    no 0 mv log/f log/g
    no 0 ln log/f log/g
    ok 0 touch log/f
    no 0 touch closed/new
    no 0 rm -f closed/f
    no 0 mv closed/f closed/g
    no 0 rmdir closed
    ok 0 echo a >> closed/f
    ok 0 touch grows/new$RANDOM && mkdir grows/dir$RANDOM
    no 0 rm -f grows/f
    no 0 mv grows/f grows/g
    no 1000 chattr -i fixed/f
    "#;

#[test]
#[ignore = "needs root, loop devices and /dev/fuse: make test"]
fn immutable_and_append_only_hold() -> Result<()> {
    const MAKE: &str = r#"
        ok 0 mkdir fixed log closed grows && for d in *; do echo old > $d/f 2> /dev/null; done; [ -e grows/f ]
        ok 0 chattr +i fixed/f && chattr +a log/f && chattr +i closed && chattr +a grows
        "#;
    const GIVE_UP: &str = r#"
        ok 0 chattr -i fixed/f && chattr -a log/f && chattr -i closed && chattr -a grows
        ok 0 rm -r fixed log closed grows && rm -f g
        "#;
    let mut mounted = Mounted::new()?;
    // Set by Linux, obeyed and taken away by kfs.
    let linux = mounted.linux()?;
    run_script(linux.dir(), MAKE)?;
    drop(linux);
    mounted.mount()?;
    mounted.script(FLAGGED).context("set by Linux")?;
    mounted.script(GIVE_UP)?;
    // Set by kfs, obeyed by both.
    mounted.script(MAKE)?;
    mounted.script(FLAGGED).context("set by kfs")?;
    mounted.unmount()?;
    let linux = mounted.linux()?;
    run_script(linux.dir(), FLAGGED).context("Linux")?;
    run_script(linux.dir(), GIVE_UP)?;
    drop(linux);
    e2fsck(&mounted.image)
}

/// Linux follows forty links on a path, here as anywhere.
#[test]
#[ignore = "needs root and /dev/fuse: make test"]
fn chains_of_forty_links_are_followed() -> Result<()> {
    on_both(
        r#"
        ok 0 mkdir d && echo end > d/l0 && for i in $(seq 41); do ln -s l$((i - 1)) d/l$i; done
        ok 0 [ "$(cat d/l40)" = end ]
        no 0 cat d/l41
        ok 0 cat d/l41 2>&1 | grep -q 'Too many levels'
        ok 0 ln -s . d/s && p=d$(printf '/s%.0s' $(seq 40))/l0 && [ "$(cat $p)" = end ]
        ok 0 p=d$(printf '/s%.0s' $(seq 41))/l0; cat $p 2>&1 | grep -q 'Too many levels'
        ok 0 ln -s loop d/loop && cat d/loop 2>&1 | grep -q 'Too many levels'
        "#,
    )
}
