//! Lists.

use bytes::Bytes;
use serde_json::json;

use super::Failure;
use super::pages::{self, Snapshot};
use super::path::Target;
use super::query::Query;
use super::shared::Shared;

/// A list, or a page of one, as JSON.
pub(super) fn list(shared: &Shared, target: &Target, query: &Query) -> Result<Bytes, Failure> {
    let (number, snapshot, start) = if query.continue_.is_empty() {
        (None, first(shared, target, query)?, 0)
    } else {
        let (number, snapshot, start) = shared.pages().resume(&query.continue_)?;
        (Some(number), snapshot, start)
    };
    let all = &snapshot.objects;
    // A list that need not be fresh comes from a cache, which knows no pages.
    let limit = match query.limit {
        0 => all.len(),
        _ if query.version == "0" => all.len(),
        limit => limit,
    };
    let end = start.saturating_add(limit).min(all.len());
    let mut metadata = json!({"resourceVersion": snapshot.version.to_string()});
    if end < all.len() {
        let number = number.unwrap_or_else(|| shared.pages().begin(snapshot.clone()));
        metadata["continue"] = json!(pages::token(number, end));
        metadata["remainingItemCount"] = json!(all.len() - end);
    }
    let resource = target.resource;
    let mut body = format!(
        "{{\"kind\":\"{}List\",\"apiVersion\":\"{}\",\"metadata\":{metadata},\"items\":[",
        resource.kind(),
        resource.api_version(),
    )
    .into_bytes();
    for (index, object) in all.get(start..end).unwrap_or_default().iter().enumerate() {
        if index > 0 {
            body.push(b',');
        }
        object.append_item(&mut body);
    }
    body.extend(b"]}");
    shared.count(resource, |served| served.lists += 1);
    Ok(body.into())
}

fn first(shared: &Shared, target: &Target, query: &Query) -> Result<Snapshot, Failure> {
    let filter = query.filter(target)?;
    let store = shared.store();
    let asked = query.version()?.unwrap_or(0);
    store.check_reached(asked)?;
    if query.exact && asked != store.version() {
        return Err(Failure::version_too_old(asked, store.version()));
    }
    let mut objects = store.list(target.resource, &target.namespace);
    objects.retain(|object| filter.matches(object));
    Ok(Snapshot {
        version: store.version(),
        objects: objects.into(),
    })
}
