use super::*;
use clap::Parser;

fn config(words: &[&str]) -> Result<Config, ConfigError> {
    let words = std::iter::once("kfsd").chain(words.iter().copied());
    Config::try_from(Args::try_parse_from(words).unwrap())
}

fn message(words: &[&str]) -> String {
    config(words).unwrap_err().to_string()
}

#[test]
fn help_and_options_are_consistent() {
    <Args as clap::CommandFactory>::command().debug_assert();
}

#[test]
fn source_and_users_are_needed() {
    assert!(message(&["--socket-path", "/tmp/a"]).contains("--image"));
    assert!(message(&["--shared-dir", "/tmp"]).contains("--mount"));
    let both = [
        "--image",
        "/bin/sh",
        "--shared-dir",
        "/tmp",
        "--socket-path",
        "/tmp/a",
    ];
    assert!(message(&both).contains("exclude"));
}

#[test]
fn what_the_paths_name_is_checked() {
    let socket = ["--socket-path", "/tmp/a"];
    let with = |words: &[&'static str]| message(&[words, &socket].concat());
    assert!(with(&["--image", "/tmp"]).contains("--shared-dir"));
    assert!(with(&["--image", "/dev/null"]).contains("neither a file nor a block device"));
    assert!(with(&["--image", "/no/such"]).contains("--image /no/such"));
    assert!(with(&["--shared-dir", "/bin/sh"]).contains("--image"));
    let dir = ["--shared-dir", "/tmp"];
    assert!(message(&[&dir[..], &["--mount", "/bin/sh"]].concat()).contains("not a directory"));
    assert!(message(&[&dir[..], &["--fd", "0"]].concat()).contains("--fd 0"));
    assert!(message(&[&dir[..], &["--fd", "999"]].concat()).contains("--fd 999"));
    assert!(message(&[&dir[..], &socket, &socket].concat()).contains("twice"));
    let long = format!("/tmp/{}", "x".repeat(120));
    assert!(message(&[&dir[..], &["--socket-path", &long]].concat()).contains("longer than"));
}

#[test]
fn options_that_would_be_ignored_are_refused() {
    let dir = ["--shared-dir", "/tmp", "--socket-path", "/tmp/a"];
    let with = |words: &[&'static str]| message(&[&dir[..], words].concat());
    assert!(with(&["-o", "noatime"]).contains("-o noatime"));
    assert!(with(&["-o", "flock"]).contains("-o flock"));
    assert!(with(&["--seccomp", "kill"]).contains("--seccomp none"));
    assert!(with(&["--translate-uid", "map:0:1:1"]).contains("--translate-uid"));
    assert!(with(&["--inode-file-handles=mandatory"]).contains("mandatory"));
    assert!(with(&["-o", "cache=sometimes"]).contains("sometimes"));
    assert!(with(&["--tag", ""]).contains("tag"));
    assert!(with(&["--socket-group", "no-such-group"]).contains("no-such-group"));
    assert!(with(&["--modcaps", "+flying"]).contains("capability"));
    let image = ["--image", "/bin/sh", "--socket-path", "/tmp/a", "--xattr"];
    assert!(message(&image).contains("--xattr works with --shared-dir only"));
}

#[test]
fn libvirts_command_line_is_understood() {
    let words = [
        "-o",
        "source=/tmp,cache=always,sandbox=none,xattr,no_posix_lock,no_flock",
        "-o",
        "announce_submounts",
        "--thread-pool-size=16",
        "--socket-path=/tmp/a",
    ];
    let config = config(&words).unwrap();
    assert_eq!(config.source, Source::SharedDir("/tmp".into()));
    assert_eq!(config.cache, CachePolicy::Always);
    assert_eq!(config.shared_dir.sandbox, Sandbox::None);
    assert!(config.shared_dir.xattr && config.shared_dir.announce_submounts);
    assert!(
        config
            .remarks
            .iter()
            .any(|remark| remark.contains("--thread-pool-size"))
    );
}

#[test]
fn mounts_take_the_options_of_mount() {
    let words = [
        "--shared-dir",
        "/tmp",
        "--mount",
        "/",
        "-o",
        "noatime,xattr",
        "-o",
        "ro",
    ];
    let config = config(&words).unwrap();
    assert!(config.mount_options.is_read_only());
    assert!(config.read_only && config.shared_dir.xattr);
    assert_eq!(config.shared_dir.sandbox, Sandbox::None);
}

#[test]
fn sockets_and_mounts_may_be_several() {
    let words = [
        "--shared-dir",
        "/tmp",
        "--socket-path",
        "a",
        "--socket-path",
        "b",
        "--mount",
        "/",
    ];
    let config = config(&words).unwrap();
    assert_eq!(config.endpoints.len(), 3);
    let Endpoint::Socket(path) = &config.endpoints[0] else {
        panic!("the sockets come first")
    };
    assert!(path.is_absolute());
}
