//! Live flows in a surrounding: they go on while policy allows them, and end within a second when it does not.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use portcullis_tests::netns::{Family, Flow, Host, PATIENCE, SILENCE};

use super::cases::Needs;
use super::cast::{PORT, TARGET, cluster_ips, db_in, service, store_policy, web_out};
use super::foreign::Surrounding;
use super::world::World;

/// What the documents promise for a revoked flow.
const REVOKED: Duration = Duration::from_secs(1);

/// A flow of any kind.
enum Live {
    Tcp(Flow),
    /// To an echo server.
    Udp(UdpSocket),
}

impl Live {
    fn udp(from: &Host, to: IpAddr) -> std::io::Result<Self> {
        let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = from.netns().enter(|| UdpSocket::bind(any))?;
        socket.connect((to, 53))?;
        Ok(Self::Udp(socket))
    }

    /// Whether what the client sends gets there (and, with UDP, back).
    fn client_speaks(&mut self, patience: Duration) -> std::io::Result<bool> {
        match self {
            Self::Tcp(flow) => flow.client_speaks(patience),
            Self::Udp(socket) => {
                socket.set_read_timeout(Some(patience))?;
                socket.send(b"live")?;
                match socket.recv(&mut [0; 16]) {
                    Ok(_) => Ok(true),
                    Err(error)
                        if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) =>
                    {
                        Ok(false)
                    }
                    Err(error) => Err(error),
                }
            }
        }
    }

    fn server_speaks(&mut self, patience: Duration) -> std::io::Result<bool> {
        match self {
            Self::Tcp(flow) => flow.server_speaks(patience),
            Self::Udp(_) => self.client_speaks(patience),
        }
    }
}

/// A flow, who has it, and whether the change ends it.
struct Held {
    name: String,
    live: Live,
    ends: bool,
}

impl Held {
    /// What is wrong with it, if something is.
    fn after_the_change(&mut self) -> Option<String> {
        let name = self.name.clone();
        let said = |what: &str| Some(format!("  {name}: {what}"));
        if !self.ends {
            return match self.live.client_speaks(PATIENCE) {
                Ok(true) => None,
                Ok(false) => said("cut, although policy allows it"),
                Err(error) => said(&format!("broke: {error}")),
            };
        }
        let deadline = Instant::now() + REVOKED;
        loop {
            let late = Instant::now() > deadline;
            let client = self.live.client_speaks(SILENCE);
            let server = match client {
                Ok(false) => self.live.server_speaks(SILENCE),
                // Asked when the client is silent.
                _ => Ok(true),
            };
            let ways = match (client, server) {
                (Ok(client), Ok(server)) => [client, server],
                (Err(error), _) | (_, Err(error)) => return said(&format!("broke: {error}")),
            };
            if ways == [false, false] {
                return None;
            }
            if late {
                return said(&format!(
                    "goes on a second after it was revoked (client, server: {ways:?})"
                ));
            }
        }
    }
}

/// Opens flows, revokes web's egress, and gives it back. Cells, and what is wrong.
pub(super) fn revoke(world: &World<'_>, surrounding: &Surrounding) -> (usize, Vec<String>) {
    let cast = world.cast;
    let mut held = Vec::new();
    let mut wrong = Vec::new();
    let mut open = |name: &str, family: Family, ends, live: anyhow::Result<Live>| {
        let name = format!("{name}, {family:?}");
        match live {
            Ok(live) => held.push(Held { name, live, ends }),
            Err(error) => wrong.push(format!("  {name}: not opened: {error:#}")),
        }
    };
    let (web, db, friend) = (&cast.web, &cast.db, &cast.friend);
    for family in Family::ALL {
        let to = db.address(family);
        let at = |port| SocketAddr::new(to, port);
        let tcp = |from: &Host, to, port| {
            Flow::open_through(from.netns(), to, db.netns(), at(port)).map(Live::Tcp)
        };
        let (first, second) = (TARGET + 1, TARGET + 2);
        open("web to db", family, true, tcp(web, at(first), first));
        open(
            "friend to db",
            family,
            false,
            tcp(friend, at(second), second),
        );
        open(
            "web to db, UDP",
            family,
            true,
            Live::udp(web, to).map_err(Into::into),
        );
        if surrounding.needs >= Needs::Translation {
            let service_ip = cluster_ips(service::FLOWS)[family as usize];
            let through = SocketAddr::new(service_ip, PORT);
            open(
                "web to db through a Service",
                family,
                true,
                tcp(web, through, TARGET),
            );
            let service_ip = cluster_ips(service::DB)[family as usize];
            let udp = Live::udp(web, service_ip).map_err(Into::into);
            open("web to db through a Service, UDP", family, true, udp);
        }
    }
    let cells = 2 * (held.len() + wrong.len());
    wrong.extend(at_once(&mut held, |held| {
        let works = held.live.client_speaks(PATIENCE).unwrap_or(false)
            && held.live.server_speaks(PATIENCE).unwrap_or(false);
        (!works).then(|| format!("  {}: does not work while it is allowed", held.name))
    }));
    store_policy(
        cast,
        "web-out",
        "{podSelector: {matchLabels: {app: web}}, policyTypes: [Egress]}",
    );
    world.agent.sync().unwrap();
    wrong.extend(at_once(&mut held, Held::after_the_change));
    store_policy(cast, "web-out", &web_out());
    // As it was, for whom comes next.
    store_policy(cast, "db-in", &db_in());
    world.agent.sync().unwrap();
    (cells, wrong)
}

fn at_once(held: &mut [Held], check: impl Fn(&mut Held) -> Option<String> + Sync) -> Vec<String> {
    thread::scope(|scope| {
        let check = &check;
        let threads: Vec<_> = held
            .iter_mut()
            .map(|held| scope.spawn(move || check(held)))
            .collect();
        threads
            .into_iter()
            .filter_map(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
            .collect()
    })
}
