//! What Prometheus and kubelet get from an agent.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};

use anyhow::{Context as _, Result};

use super::{Netns, PATIENCE};

/// An answer over HTTP.
#[derive(Clone, Debug)]
pub struct Page {
    /// Status code.
    pub status: u16,
    /// Media type.
    pub content_type: String,
    /// Body.
    pub text: String,
}

/// Gets `path` from the agent of this namespace.
///
/// # Errors
///
/// When there is no answer in time.
pub fn get(netns: &Netns, path: &str) -> Result<Page> {
    let agent = SocketAddr::from((Ipv4Addr::LOCALHOST, 9099));
    let mut stream = netns
        .enter(|| TcpStream::connect_timeout(&agent, PATIENCE))
        .context("connect to the agent")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, text) = answer.split_once("\r\n\r\n").context("no end of headers")?;
    let status = head.split(' ').nth(1).context("no status")?.parse()?;
    let content_type = head.lines().find_map(|line| {
        let (name, value) = line.split_once(": ")?;
        name.eq_ignore_ascii_case("content-type").then_some(value)
    });
    Ok(Page {
        status,
        content_type: content_type.unwrap_or_default().to_owned(),
        text: text.to_owned(),
    })
}

impl Page {
    /// The lines of one metric.
    pub fn series(&self, metric: &str) -> impl Iterator<Item = &str> {
        let named = move |line: &&str| {
            line.strip_prefix(metric)
                .is_some_and(|rest| rest.starts_with(['{', ' ']))
        };
        self.text.lines().filter(named)
    }

    /// The value of a series, written as in the text.
    ///
    /// # Panics
    ///
    /// When it is not there, or is no number.
    #[must_use]
    pub fn value(&self, series: &str) -> f64 {
        let value = self.text.lines().find_map(|line| {
            let rest = line.strip_prefix(series)?;
            rest.strip_prefix(' ')
        });
        let value = value.unwrap_or_else(|| panic!("no {series} in\n{}", self.text));
        value.parse().unwrap()
    }
}
