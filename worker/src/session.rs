//! The connection to the coordinator: joins, passes directives to the training thread and reports back, keeps the heartbeat
//! going, and comes back when the connection breaks.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::mpsc as blocking;
use std::time::{Duration, Instant};

use proto::PROTOCOL_VERSION;
use proto::v1::{self, coordinator_client::CoordinatorClient, directive::Directive as Kind, worker_message::Message};
use runfile::RunFile;
use tch::Device;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use crate::collective::{Flag, Store};
use crate::trainer::{End, Order, Progress, Saving, Trainer};

/// Reports that may wait for the network before the training thread does.
const REPORTS: usize = 256;
/// First and longest pause between attempts to reach the coordinator.
const BACK_OFF: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(5)];
/// How long one attempt to connect may take.
const CONNECT: Duration = Duration::from_secs(5);

/// What the command line says.
pub struct Options {
    /// URL of the coordinator.
    pub coordinator: String,
    /// Wanted identity.
    pub rank: Option<u32>,
    /// Where to compute.
    pub device: Device,
    /// Address for other workers.
    pub host: Option<IpAddr>,
    /// How long to go on trying to reach the coordinator.
    pub patience: Duration,
}

/// Takes part in the run until it is complete.
///
/// # Errors
/// One line that says why this worker cannot go on.
pub async fn run(options: Options) -> Result<(), String> {
    let host = match options.host {
        Some(host) => host,
        None => route_to(&options.coordinator).await?,
    };
    let (client, place) = join(&options, host, options.rank).await?;
    let store = Store::serve(host)?;
    let mut training = Training::start(&place, options.device, host).await?;
    let over = take_part(&options, host, (client, place), &store, &mut training).await;
    training.saved().await;
    over
}

/// Session after session, until there is nothing left to do.
async fn take_part(
    options: &Options,
    host: IpAddr,
    (mut client, mut place): (Client, v1::JoinResponse),
    store: &Store,
    training: &mut Training,
) -> Result<(), String> {
    let mut holds = None;
    loop {
        let attach = v1::Attach {
            session_token: place.session_token.clone(),
            store_address: store.address().to_owned(),
            data_set: Some(training.data_set.clone()),
            holds,
        };
        match serve(&mut client, &place, attach, training).await {
            Over::Finished => {
                let End::Finished(sha256) = training.end().await else { return Err(training_died()) };
                println!("finished rank={} parameters_sha256={sha256}", place.rank);
                return Ok(());
            }
            Over::Failed(reason) => return Err(reason),
            Over::Disconnected(reason) => {
                tracing::warn!(
                    "connection to the coordinator lost ({reason}): letting go of the generation, then rejoining"
                );
                holds = training.let_go().await?;
                (client, place) = join(options, host, Some(place.rank)).await?;
            }
        }
    }
}

/// The address of this machine that the coordinator's host is reached from.
async fn route_to(url: &str) -> Result<IpAddr, String> {
    let invalid = || format!("{url}: not a URL like http://host:port");
    let uri: tonic::transport::Uri = url.parse().map_err(|_| invalid())?;
    let (host, port) = (uri.host().ok_or_else(invalid)?, uri.port_u16().ok_or_else(invalid)?);
    let unknown = |error: std::io::Error| format!("{url}: {error}");
    let host = host.trim_matches(['[', ']']);
    let peer: SocketAddr = tokio::net::lookup_host((host, port)).await.map_err(unknown)?.next().ok_or_else(invalid)?;
    let any: IpAddr = if peer.is_ipv4() { [0, 0, 0, 0].into() } else { [0_u16; 8].into() };
    // Connecting a datagram socket sends nothing; it only looks the route up.
    let local = UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.connect(peer)?;
        socket.local_addr()
    });
    Ok(local.map_err(unknown)?.ip())
}

type Client = CoordinatorClient<Channel>;

/// Asks for a place until the coordinator answers or patience ends.
async fn join(options: &Options, host: IpAddr, rank: Option<u32>) -> Result<(Client, v1::JoinResponse), String> {
    let url = &options.coordinator;
    let endpoint = Endpoint::from_shared(url.clone()).map_err(|error| format!("{url}: {error}"))?;
    let endpoint = endpoint.connect_timeout(CONNECT).tcp_nodelay(true);
    let request = v1::JoinRequest {
        protocol_version: PROTOCOL_VERSION,
        rank,
        host: host.to_string(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        device: match options.device {
            Device::Cuda(number) => format!("cuda:{number}"),
            _ => "cpu".to_owned(),
        },
    };
    let started = Instant::now();
    let mut pause = BACK_OFF[0];
    loop {
        let attempt = async {
            let channel = endpoint.connect().await.map_err(|error| Status::unavailable(chain(&error)))?;
            let mut client = Client::new(channel);
            let place = client.join(request.clone()).await?.into_inner();
            Ok::<_, Status>((client, place))
        };
        let status = match attempt.await {
            Ok((client, place)) => {
                tracing::info!(rank = place.rank, coordinator = url, "joined");
                return Ok((client, place));
            }
            Err(status) => status,
        };
        // A place that is still taken by this worker's own lost session becomes free in a moment.
        let own_place = status.code() == Code::AlreadyExists && options.rank != rank;
        if status.code() != Code::Unavailable && !own_place {
            return Err(format!("{url} refused: {}", status.message()));
        }
        let waited = started.elapsed();
        if waited + pause > options.patience {
            let seconds = waited.as_secs_f64();
            return Err(format!("gave up on {url} after {seconds:.0} s: {}", status.message()));
        }
        tracing::warn!("cannot join {url} ({}); trying again in {:.1} s", status.message(), pause.as_secs_f64());
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(BACK_OFF[1]);
    }
}

/// An error and its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

/// The training thread, seen from here.
struct Training {
    data_set: v1::DataSet,
    saving: Saving,
    progress: Progress,
    orders: blocking::Sender<Order>,
    reports: mpsc::Receiver<Message>,
    end: oneshot::Receiver<End>,
    /// The latest generation that this worker was told of, and its flag.
    generation: u64,
    abandon: Flag,
}

impl Training {
    /// Starts the thread and waits until data and models are loaded.
    async fn start(place: &v1::JoinResponse, device: Device, host: IpAddr) -> Result<Self, String> {
        let run: RunFile = serde_json::from_str(&place.run_file)
            .map_err(|error| format!("the coordinator's run file does not fit this version: {error}"))?;
        let progress = Progress::default();
        let (orders, received) = blocking::channel();
        let (sender, reports) = mpsc::channel(REPORTS);
        let (loaded, loading) = oneshot::channel();
        let (ended, end) = oneshot::channel();
        let shared = progress.clone();
        std::thread::spawn(move || {
            // A session that is gone needs no answer.
            match Trainer::new(run, device, host, shared, sender) {
                Err(problem) => _ = loaded.send(Err(problem)),
                Ok(trainer) => {
                    _ = loaded.send(Ok((trainer.data_set(), trainer.saving())));
                    _ = ended.send(trainer.run(&received));
                }
            }
        });
        let (data_set, saving) = loading.await.map_err(|_| training_died())??;
        let abandon = Flag::default();
        Ok(Self { data_set, saving, progress, orders, reports, end, generation: 0, abandon })
    }

    fn order(&mut self, directive: v1::Directive) {
        match &directive.directive {
            Some(Kind::Rendezvous(_)) => {
                self.generation = directive.generation;
                self.abandon = Flag::default();
            }
            Some(Kind::Abandon(_)) if directive.generation >= self.generation => self.abandon.raise(),
            _ => {}
        }
        // A thread that has ended says so through `end`.
        _ = self.orders.send(Order { directive, abandon: self.abandon.clone() });
    }

    /// Ends the current generation from this side; the state that the worker then holds.
    async fn let_go(&mut self) -> Result<Option<v1::Position>, String> {
        let reason = "connection lost".to_owned();
        let abandon = Some(Kind::Abandon(v1::Abandon { reason }));
        self.order(v1::Directive { generation: self.generation, directive: abandon });
        loop {
            match self.reports.recv().await {
                Some(Message::Idle(idle)) => return Ok(idle.position),
                Some(_) => {}
                None => return Err(self.why_ended().await),
            }
        }
    }

    async fn end(&mut self) -> End {
        (&mut self.end).await.unwrap_or(End::Closed)
    }

    /// Waits for checkpoints that are being saved: they would not become whole without this process.
    async fn saved(&self) {
        let saving = self.saving.clone();
        // It only fails where the runtime is gone, and with it the process.
        _ = tokio::task::spawn_blocking(move || saving.wait()).await;
    }

    async fn why_ended(&mut self) -> String {
        match self.end().await {
            End::Failed(reason) => reason,
            _ => training_died(),
        }
    }
}

fn training_died() -> String {
    "the training thread died".to_owned()
}

/// How a session ended.
enum Over {
    Finished,
    Failed(String),
    Disconnected(String),
}

/// One session, from Attach to its end.
async fn serve(client: &mut Client, place: &v1::JoinResponse, attach: v1::Attach, training: &mut Training) -> Over {
    let (outgoing, messages) = mpsc::channel(REPORTS);
    let send = async |message| outgoing.send(v1::WorkerMessage { message: Some(message) }).await.is_ok();
    send(Message::Attach(attach)).await;
    let mut directives = match client.session(ReceiverStream::new(messages)).await {
        Ok(response) => response.into_inner(),
        Err(status) => return broken(&status),
    };
    let mut heartbeat = tokio::time::interval(Duration::from_millis(place.heartbeat_interval_ms.max(10)));
    let mut finished = false;
    loop {
        let message = tokio::select! {
            directive = directives.message() => match directive {
                Ok(Some(v1::Directive { directive: Some(Kind::Leave(leave)), .. })) => return Over::Failed(leave.reason),
                Ok(Some(directive)) => {
                    training.order(directive);
                    continue;
                }
                Ok(None) | Err(_) if finished => return Over::Finished,
                Ok(None) => return Over::Disconnected("stream closed".to_owned()),
                Err(status) => return broken(&status),
            },
            report = training.reports.recv(), if !finished => match report {
                Some(report) => {
                    finished = matches!(report, Message::Finished(_));
                    report
                }
                None => return Over::Failed(training.why_ended().await),
            },
            _ = heartbeat.tick() => Message::Heartbeat(training.progress.heartbeat()),
        };
        let fatal = matches!(&message, Message::Failed(failed) if failed.fatal);
        let sent = send(message).await;
        if finished {
            // Closing this end tells the coordinator that nothing more will come.
            return close(outgoing, directives, Over::Finished).await;
        }
        if fatal {
            let reason = training.why_ended().await;
            return close(outgoing, directives, Over::Failed(reason)).await;
        }
        if !sent {
            return Over::Disconnected("stream closed".to_owned());
        }
    }
}

/// Closes this end of the stream and waits, not for long, until the coordinator has closed its own, so that the last message
/// is not cut off.
async fn close(
    outgoing: mpsc::Sender<v1::WorkerMessage>,
    mut directives: tonic::Streaming<v1::Directive>,
    over: Over,
) -> Over {
    drop(outgoing);
    let drained = async { while let Ok(Some(_)) = directives.message().await {} };
    _ = tokio::time::timeout(CONNECT, drained).await;
    over
}

fn broken(status: &Status) -> Over {
    match status.code() {
        // The coordinator answered: it refuses this worker, and would again.
        Code::InvalidArgument | Code::FailedPrecondition | Code::PermissionDenied => {
            Over::Failed(status.message().to_owned())
        }
        _ => Over::Disconnected(status.message().to_owned()),
    }
}
