use super::*;
use kfsctl::{Client, ClientError, Status};
use std::io::{BufRead, BufReader, Read, Write};
use std::time::Instant;

struct Echo;

impl Handler for Echo {
    fn handle(&self, request: Request, watch: &mut Watch<'_>) -> Result<Value, RequestError> {
        match request {
            Request::Trim {} => work(watch),
            Request::Status {} => Ok(serde_json::to_value(Status::default()).unwrap()),
            _ => Err(RequestError::new(ErrorCode::NotSupported, "not here", "")),
        }
    }
}

fn serve() -> (tempfile::TempDir, PathBuf, ControlServer) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("kfsd-1.sock");
    let server = ControlListener::new(&path)
        .unwrap()
        .serve(Arc::new(Echo))
        .unwrap();
    (directory, path, server)
}

fn raw(path: &Path) -> (UnixStream, BufReader<UnixStream>) {
    let stream = UnixStream::connect(path).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut hello = String::new();
    reader.read_line(&mut hello).unwrap();
    assert!(hello.contains("kfs-control"), "{hello}");
    (stream, reader)
}

#[test]
fn a_client_gets_its_status() {
    let (directory, path, server) = serve();
    let mut client = Client::connect(&path).unwrap();
    assert_eq!(client.hello().pid, std::process::id());
    assert_eq!(client.status().unwrap(), Status::default());
    assert_eq!(client.status().unwrap(), Status::default());
    let dirs = [directory.path().to_owned()];
    assert_eq!(Client::find_in(&dirs).unwrap().path(), path);
    drop(server);
    assert!(!path.exists(), "the socket stays behind");
    assert!(matches!(
        Client::find_in(&dirs),
        Err(ClientError::NoneRunning { .. })
    ));
}

#[test]
fn nonsense_is_answered_and_the_next_request_is_served() {
    let (_directory, path, _server) = serve();
    let (mut stream, mut reader) = raw(&path);
    let mut ask = |bytes: &[u8]| {
        stream.write_all(bytes).unwrap();
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        line
    };
    for nonsense in [
        &b"\n"[..],
        b"hello\n",
        b"\xff\xff\n",
        b"{\"command\":\"format-c\"}\n",
        b"{\"command\":\"status\",\"x\":1}\n",
        b"[1,2,3]\n",
    ] {
        let answer = ask(nonsense);
        assert!(answer.contains("\"error\""), "{nonsense:?}: {answer}");
    }
    assert!(ask(b"{\"command\":\"status\",\"id\":5}\n").contains("\"ok\""));
}

#[test]
fn an_endless_line_is_cut_off() {
    let (_directory, path, _server) = serve();
    let (mut stream, mut reader) = raw(&path);
    // The server stops reading at the bound, so the rest may not be taken.
    let _ = stream.write_all(&vec![b'x'; 2 << 20]);
    let mut rest = String::new();
    let _ = reader.read_to_string(&mut rest);
    assert!(rest.is_empty() || rest.contains("bad-request"), "{rest}");
    Client::connect(&path).unwrap().status().unwrap();
}

#[test]
fn too_many_clients_are_told_so() {
    let (_directory, path, _server) = serve();
    let clients: Vec<_> = (0..MAX_CLIENTS)
        .map(|_| Client::connect(&path).unwrap())
        .collect();
    match Client::connect(&path) {
        Err(ClientError::Refused(error)) => assert_eq!(error.code, ErrorCode::Busy),
        other => panic!("{other:?}"),
    }
    drop(clients);
    let begin = Instant::now();
    while Client::connect(&path).is_err() {
        assert!(
            begin.elapsed() < Duration::from_secs(5),
            "no place becomes free"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn several_daemons_are_listed() {
    let directory = tempfile::tempdir().unwrap();
    let listen = |name: &str| {
        let path = directory.path().join(name);
        ControlListener::new(&path)
            .unwrap()
            .serve(Arc::new(Echo))
            .unwrap()
    };
    let servers = [listen("kfsd-1.sock"), listen("kfsd-2.sock")];
    // A socket whose owner was killed is passed over.
    drop(UnixListener::bind(directory.path().join("kfsd-3.sock")).unwrap());
    match Client::find_in(&[directory.path().to_owned()]) {
        Err(ClientError::Several(choices)) => assert_eq!(choices.len(), 2),
        other => panic!("{other:?}"),
    }
    drop(servers);
}

#[test]
fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("control");
    drop(UnixListener::bind(&path).unwrap());
    let listener = ControlListener::new(&path).unwrap();
    let error = ControlListener::new(&path).unwrap_err();
    assert!(
        error.to_string().contains("another process listens"),
        "{error}"
    );
    drop(listener);
    // What is not a socket is nobody's to remove.
    std::fs::write(&path, "precious").unwrap();
    ControlListener::new(&path).unwrap_err();
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
}

/// Works for up to ten seconds.
fn work(watch: &mut Watch<'_>) -> Result<Value, RequestError> {
    let told = |done| Progress {
        stage: "working".into(),
        done,
        total: 1000,
    };
    let is_ended = (0..1000).any(|done| {
        std::thread::sleep(Duration::from_millis(10));
        watch(&told(done)).is_break()
    });
    ENDED.fetch_add(usize::from(is_ended), Ordering::SeqCst);
    Err(RequestError::new(ErrorCode::Cancelled, "stopped", ""))
}

/// Requests that were given up. Tests that look at it are in one function.
static ENDED: AtomicUsize = AtomicUsize::new(0);

fn wait_ended(count: usize) {
    let begin = Instant::now();
    while ENDED.load(Ordering::SeqCst) < count {
        assert!(begin.elapsed() < Duration::from_secs(5), "it works on");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn requests_tell_how_far_they_are_until_nobody_wants_them() {
    let (_directory, path, server) = serve();
    // Who does not want it any more gets an answer.
    let mut client = Client::connect(&path).unwrap();
    let mut heard = Vec::new();
    let result = client.request_watched(&Request::Trim {}, &mut |progress| {
        heard.push(progress.clone());
        match progress.done > 30 {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    });
    let Err(ClientError::Refused(error)) = result else {
        panic!("{result:?}");
    };
    assert_eq!(error.code, ErrorCode::Cancelled);
    assert!(heard.iter().any(|progress| progress.stage == "working"));
    wait_ended(1);
    // Who is gone needs none.
    let (mut stream, reader) = raw(&path);
    stream
        .write_all(b"{\"command\":\"trim\",\"progress\":true}\n")
        .unwrap();
    std::thread::sleep(Duration::from_millis(200));
    drop((stream, reader));
    wait_ended(2);
    // Who does not ask for progress is not listened to: his wish stands.
    let (mut stream, reader) = raw(&path);
    stream.write_all(b"{\"command\":\"trim\"}\n").unwrap();
    drop((stream, reader));
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(ENDED.load(Ordering::SeqCst), 2);
    // The end of the daemon.
    let (mut stream, mut reader) = raw(&path);
    stream
        .write_all(b"{\"command\":\"trim\",\"progress\":true,\"id\":7}\n")
        .unwrap();
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    assert!(
        line.contains("\"progress\":{\"stage\":\"working\""),
        "{line}"
    );
    drop(server);
    assert_eq!(ENDED.load(Ordering::SeqCst), 3);
}
