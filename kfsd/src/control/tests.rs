use super::*;
use kfsctl::{Client, ClientError, Status};
use std::io::{BufRead, BufReader, Read, Write};
use std::time::Instant;

struct Echo;

impl Handler for Echo {
    fn handle(&self, request: Request) -> Result<Value, RequestError> {
        match request {
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
