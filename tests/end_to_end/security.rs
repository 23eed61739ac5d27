//! Access control: mutual TLS, tokens, and addresses that need them.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use test_support::{Coordinator, Workspace, command, error_line, run};

/// A certificate authority.
type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority(name: &str) -> Authority {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// Writes a certificate that is valid until a year. Returns the TLS options of a program that uses
/// the certificate and trusts the authority `trusts`.
fn certificate_options(
    workspace: &Workspace,
    name: &str,
    valid_until: i32,
    signed_by: &Authority,
    trusts: &Authority,
) -> Vec<String> {
    let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    params.not_after = rcgen::date_time_ymd(valid_until, 1, 1);
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, signed_by).unwrap();
    let files = [("--tls-ca", trusts.pem()), ("--tls-cert", certificate.pem()), ("--tls-key", key.serialize_pem())];
    let option =
        |(option, text): (&str, String)| [option.to_owned(), write_file(workspace, &format!("{name}{option}"), &text)];
    files.into_iter().flat_map(option).collect()
}

/// Writes a file. Returns its path.
fn write_file(workspace: &Workspace, name: &str, text: &str) -> String {
    let path = workspace.path(name);
    std::fs::write(&path, text).unwrap();
    path.to_string_lossy().into_owned()
}

fn as_strs(options: &[String]) -> Vec<&str> {
    options.iter().map(String::as_str).collect()
}

/// The response to `GET /metrics`.
fn metrics(coordinator: &Coordinator) -> String {
    let mut stream = TcpStream::connect(&coordinator.http_address).unwrap();
    write!(stream, "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).unwrap();
    response
}

/// Checks that at least `min_count` requests were refused for this reason, and that the coordinator
/// logged as many or more, each with the peer's address. A client that received no answer may have
/// retried, as often as time allows, and above a rate the coordinator counts refusals without
/// logging each.
fn assert_refused(coordinator: &Coordinator, reason: &str, min_count: usize) {
    let metrics = metrics(coordinator);
    let counter = format!("dico_refusals_total{{reason=\"{reason}\"}} ");
    let count = metrics.lines().find_map(|line| line.strip_prefix(&counter)?.parse().ok());
    let count: usize = count.unwrap_or_else(|| panic!("{counter} is not in {metrics}"));
    assert!(count >= min_count, "{count} refused for {reason}");
    let log = coordinator.process.log();
    let is_refusal = |line: &&str| line.contains(&format!("reason=\"{reason}\"")) && line.contains("peer=127.0.0.1:");
    let logged = log.lines().filter(is_refusal).count();
    assert!((min_count..=count).contains(&logged), "{logged} of {count} logged: {log}");
}

#[test]
fn a_run_over_mutual_tls_refuses_wrong_certificates_and_tokens_without_interruption() {
    let workspace = Workspace::new();
    let (authority, foreign_authority) = (authority("own"), authority("foreign"));
    let admin = ["--admin-token-file".to_owned(), write_file(&workspace, "admin", "the-token-of-the-admins\n")];
    let server_options =
        [certificate_options(&workspace, "coordinator", 4000, &authority, &authority), admin.to_vec()].concat();
    let run_file = workspace.run_file("run", 2, "");
    let coordinator = Coordinator::start_with(&workspace, &run_file, "https", &as_strs(&server_options));
    let worker_options = certificate_options(&workspace, "worker", 4000, &authority, &authority);
    let first = coordinator.start_worker_with(&workspace, 0, &as_strs(&worker_options));

    for (name, valid_until, signed_by) in [("expired", 2020, &authority), ("foreign", 4000, &foreign_authority)] {
        let options = certificate_options(&workspace, name, valid_until, signed_by, &authority);
        let join = ["join", "--coordinator", &coordinator.url];
        let error = error_line(&run("worker", &[&join[..], &as_strs(&options)].concat()));
        assert!(error.contains("refuses the certificate"), "{name}: {error}");
    }
    let plain_url = coordinator.url.replace("https", "http");
    let error = error_line(&run("worker", &["join", "--coordinator", &plain_url, "--join-timeout", "0"]));
    assert!(error.contains(&plain_url), "{error}");

    let resume = [&["resume", "--coordinator", &coordinator.url][..], &as_strs(&worker_options)].concat();
    let error = error_line(&run("coordinator", &resume));
    assert!(error.contains("--admin-token-file"), "{error}");
    let error = error_line(&run("coordinator", &[&resume[..], &as_strs(&admin)].concat()));
    assert!(error.contains("not paused"), "{error}");

    assert_refused(&coordinator, "certificate", 2);
    assert_refused(&coordinator, "handshake", 1);
    assert_refused(&coordinator, "admin_token", 1);
    let second = coordinator.start_worker_with(&workspace, 1, &as_strs(&worker_options));
    assert!(first.succeeds() && second.succeeds() && coordinator.process.succeeds());
    // The refusals did not interrupt the sessions.
    let log = std::fs::read_to_string(workspace.path("worker-0.log")).unwrap();
    assert!(!log.contains("lost the connection to the coordinator"), "{log}");
}

#[test]
fn only_workers_with_the_join_token_can_join() {
    let workspace = Workspace::new();
    let token = write_file(&workspace, "token", "the-token-of-the-workers\n");
    let run_file = workspace.run_file("run", 1, "");
    let coordinator = Coordinator::start_with(&workspace, &run_file, "http", &["--join-token-file", &token]);
    let join = ["join", "--coordinator", &coordinator.url, "--threads", "1"];
    assert!(error_line(&run("worker", &join)).contains("--join-token-file"));
    let wrong_token = command("worker").args(join).env("DICO_JOIN_TOKEN", "a-token-that-is-not-it").output().unwrap();
    assert!(error_line(&wrong_token).contains("--join-token-file"));
    let short_token = command("worker").args(join).env("DICO_JOIN_TOKEN", "too short").output().unwrap();
    let error = error_line(&short_token);
    assert!(error.contains("DICO_JOIN_TOKEN") && error.contains("16") && !error.contains("too short"), "{error}");
    assert_refused(&coordinator, "join_token", 2);
    let worker = coordinator.start_worker_with(&workspace, 0, &["--join-token-file", &token]);
    assert!(worker.succeeds());
    assert!(!coordinator.process.log().contains("the-token-of"));
    assert!(coordinator.process.succeeds());
}

/// The error of a coordinator that refuses to serve with these options.
fn serve_error(run_file: &Path, options: &[&str]) -> String {
    let config = run_file.to_string_lossy().into_owned();
    error_line(&run("coordinator", &[&["serve", "--config", &config, "--http", "127.0.0.1:0"][..], options].concat()))
}

#[test]
fn a_coordinator_refuses_an_open_address_without_access_control() {
    let workspace = Workspace::new();
    let run_file = workspace.run_file("run", 1, "");
    let error = serve_error(&run_file, &["--listen", "0.0.0.0:0"]);
    assert!(["--tls-cert", "--join-token-file", "--insecure"].iter().all(|option| error.contains(option)), "{error}");
    assert!(!workspace.path("run").exists(), "the coordinator left its state behind");
    let short_token = write_file(&workspace, "token", "short");
    let error = serve_error(&run_file, &["--join-token-file", &short_token]);
    assert!(error.contains(&short_token) && error.contains("openssl rand"), "{error}");
}
