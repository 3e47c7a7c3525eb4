//! How far a request is, told while it is carried out.

use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::ops::ControlFlow;

/// How far a request is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Progress {
    /// What is being done, for people.
    pub stage: Cow<'static, str>,
    /// Steps done, of whatever kind.
    pub done: u64,
    /// Steps in all; 0 where nobody knows. May grow.
    pub total: u64,
}

/// Whom a request tells how far it is. `Break` asks it to end; some end only between two steps that belong
/// together.
pub type Watch<'w> = dyn FnMut(&Progress) -> ControlFlow<()> + 'w;

/// Nobody watches.
pub fn unwatched(_: &Progress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// Tells `watch` of numbers alone, as those of one stage.
pub fn stage<'a>(
    watch: &'a mut Watch<'_>,
    stage: &'static str,
) -> impl FnMut(u64, u64) -> ControlFlow<()> + 'a {
    move |done, total| {
        watch(&Progress {
            stage: stage.into(),
            done,
            total,
        })
    }
}
