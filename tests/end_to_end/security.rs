//! Access control, with the programs as an operator runs them.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use test_support::{Coordinator, Workspace, command, error_line, run};

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority(name: &str) -> Authority {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// Options for a certificate valid until that year, signed by one authority, with another as its
/// trust root.
fn certificate(
    workspace: &Workspace,
    name: &str,
    until: i32,
    signed_by: &Authority,
    believes: &Authority,
) -> Vec<String> {
    let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    params.not_after = rcgen::date_time_ymd(until, 1, 1);
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, signed_by).unwrap();
    let files = [("--tls-ca", believes.pem()), ("--tls-cert", certificate.pem()), ("--tls-key", key.serialize_pem())];
    let option =
        |(option, text): (&str, String)| [option.to_owned(), file(workspace, &format!("{name}{option}"), &text)];
    files.into_iter().flat_map(option).collect()
}

fn file(workspace: &Workspace, name: &str, text: &str) -> String {
    let path = workspace.path(name);
    std::fs::write(&path, text).unwrap();
    path.to_string_lossy().into_owned()
}

fn strs(options: &[String]) -> Vec<&str> {
    options.iter().map(String::as_str).collect()
}

fn metrics(coordinator: &Coordinator) -> String {
    let mut stream = TcpStream::connect(&coordinator.http_address).unwrap();
    write!(stream, "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).unwrap();
    response
}

/// At least so many were refused for this reason (one that did not hear why has tried again), and each is in the coordinator's log
/// with its address.
fn assert_refused(coordinator: &Coordinator, reason: &str, times: usize) {
    let metrics = metrics(coordinator);
    let counter = format!("dico_refusals_total{{reason=\"{reason}\"}} ");
    let count = metrics.lines().find_map(|line| line.strip_prefix(&counter)?.parse().ok());
    let count: usize = count.unwrap_or_else(|| panic!("{counter} is not in {metrics}"));
    assert!(count >= times, "{count} refused for {reason}");
    let log = coordinator.process.log();
    let about = |line: &&str| line.contains(&format!("reason=\"{reason}\"")) && line.contains("peer=127.0.0.1:");
    assert_eq!(log.lines().filter(about).count(), count, "{log}");
}

#[test]
fn a_run_over_mutual_tls_does_not_notice_whom_it_refuses() {
    let workspace = Workspace::new();
    let (authority, strangers) = (authority("ours"), authority("strangers"));
    let admin = ["--admin-token-file".to_owned(), file(&workspace, "admin", "the-token-of-the-admins\n")];
    let server = [certificate(&workspace, "coordinator", 4000, &authority, &authority), admin.to_vec()].concat();
    let run_file = workspace.run_file("run", 2, "");
    let coordinator = Coordinator::start_with(&workspace, &run_file, "https", &strs(&server));
    let good = certificate(&workspace, "worker", 4000, &authority, &authority);
    let first = coordinator.start_worker_with(&workspace, 0, &strs(&good));

    for (name, until, signed_by) in [("expired", 2020, &authority), ("foreign", 4000, &strangers)] {
        let bad = certificate(&workspace, name, until, signed_by, &authority);
        let join = ["join", "--coordinator", &coordinator.url];
        let error = error_line(&run("worker", &[&join[..], &strs(&bad)].concat()));
        assert!(error.contains("refuses the certificate"), "{name}: {error}");
    }
    let plain = coordinator.url.replace("https", "http");
    let error = error_line(&run("worker", &["join", "--coordinator", &plain, "--join-timeout", "0"]));
    assert!(error.contains(&plain), "{error}");

    let resume = [&["resume", "--coordinator", &coordinator.url][..], &strs(&good)].concat();
    let error = error_line(&run("coordinator", &resume));
    assert!(error.contains("--admin-token-file"), "{error}");
    let error = error_line(&run("coordinator", &[&resume[..], &strs(&admin)].concat()));
    assert!(error.contains("not paused"), "{error}");

    assert_refused(&coordinator, "certificate", 2);
    assert_refused(&coordinator, "handshake", 1);
    assert_refused(&coordinator, "admin_token", 1);
    let second = coordinator.start_worker_with(&workspace, 1, &strs(&good));
    assert!(first.succeeds() && second.succeeds() && coordinator.process.succeeds());
    // Nobody had to come back.
    let log = std::fs::read_to_string(workspace.path("worker-0.log")).unwrap();
    assert!(!log.contains("lost the connection to the coordinator"), "{log}");
}

#[test]
fn a_join_token_lets_workers_in() {
    let workspace = Workspace::new();
    let token = file(&workspace, "token", "the-token-of-the-workers\n");
    let run_file = workspace.run_file("run", 1, "");
    let coordinator = Coordinator::start_with(&workspace, &run_file, "http", &["--join-token-file", &token]);
    let join = ["join", "--coordinator", &coordinator.url, "--threads", "1"];
    assert!(error_line(&run("worker", &join)).contains("--join-token-file"));
    let guess = command("worker").args(join).env("DICO_JOIN_TOKEN", "a-token-that-is-not-it").output().unwrap();
    assert!(error_line(&guess).contains("--join-token-file"));
    let short = command("worker").args(join).env("DICO_JOIN_TOKEN", "too short").output().unwrap();
    let error = error_line(&short);
    assert!(error.contains("DICO_JOIN_TOKEN") && error.contains("16") && !error.contains("too short"), "{error}");
    assert_refused(&coordinator, "join_token", 2);
    let worker = coordinator.start_worker_with(&workspace, 0, &["--join-token-file", &token]);
    assert!(worker.succeeds());
    assert!(!coordinator.process.log().contains("the-token-of"));
    assert!(coordinator.process.succeeds());
}

fn serve(run_file: &Path, more: &[&str]) -> String {
    let config = run_file.to_string_lossy().into_owned();
    error_line(&run("coordinator", &[&["serve", "--config", &config, "--http", "127.0.0.1:0"][..], more].concat()))
}

#[test]
fn a_coordinator_does_not_listen_to_everybody_by_mistake() {
    let workspace = Workspace::new();
    let run_file = workspace.run_file("run", 1, "");
    let error = serve(&run_file, &["--listen", "0.0.0.0:0"]);
    assert!(["--tls-cert", "--join-token-file", "--insecure"].iter().all(|way| error.contains(way)), "{error}");
    assert!(!workspace.path("run").exists(), "it left its state behind");
    let short = file(&workspace, "token", "short");
    let error = serve(&run_file, &["--join-token-file", &short]);
    assert!(error.contains(&short) && error.contains("openssl rand"), "{error}");
}
