//! Interface `amqp`: declares, consumes every queue on a lane, begins anew when the broker or a channel is lost, and drains.
//! What a delivery comes to is decided in `deliver.rs`.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::{BoxFuture, join_all};
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use lapin::Channel;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::config::{APPLICATION_EXCHANGE, AmqpConfig};
use super::deliver::Receiver;
use super::events::Events;
use super::link::{Link, Live, Purpose};
use super::replies::Replies;
use super::settle::{Verdict, settle};
use super::topology::Binding;
use crate::protocol::{Interface, InterfaceContext, InterfaceError};
use crate::request::Deadline;

/// Deliveries of a queue beyond so many in work go to the lanes in turn.
const LOCAL_MAX: usize = 16;
/// Before consuming begins anew.
const PAUSE: Duration = Duration::from_millis(200);
/// For declaring, and for what is said to a broker at the end.
const BROKER_TIMEOUT: Duration = Duration::from_secs(10);
/// Commands that wait to be obeyed; who brings one more waits.
const COMMANDS_MAX: usize = 16;

pub(super) struct AmqpInterface {
    config: AmqpConfig,
}

/// What messages tell the interface to do.
#[derive(Debug)]
pub(super) enum Command {
    Quit,
    Restart,
    Join(String),
    Leave(String),
}

/// Why consuming stopped.
enum End {
    Drain,
    Quit,
    Restart,
    Lost(String),
}

impl AmqpInterface {
    pub(super) fn new(config: AmqpConfig) -> Self {
        Self { config }
    }
}

#[async_trait]
impl Interface for AmqpInterface {
    async fn run(self: Box<Self>, cx: InterfaceContext) -> Result<(), InterfaceError> {
        let AmqpConfig { broker, cage_directory, .. } = &self.config;
        let runtime = Handle::current();
        let link = Link::of(cage_directory, broker, Purpose::Consume, &runtime);
        let replies = Replies::new(Link::of(cage_directory, broker, Purpose::Publish, &runtime));
        let events = Events::new(cx.endpoint.cage.clone(), cx.endpoint.interface.clone());
        let (commands_tx, commands) = mpsc::channel(COMMANDS_MAX);
        let receiver = Arc::new(Receiver::new(self.config, cx.clone(), events, replies, commands_tx));
        Rounds { cx, link, receiver, commands, leaving: Vec::new() }.run().await
    }
}

/// The interface's life: rounds of declaring and consuming.
struct Rounds {
    cx: InterfaceContext,
    link: Arc<Link>,
    receiver: Arc<Receiver>,
    commands: mpsc::Receiver<Command>,
    /// Consumers of earlier rounds, which finish what they have.
    leaving: Vec<AbortOnDropHandle<()>>,
}

impl Rounds {
    async fn run(mut self) -> Result<(), InterfaceError> {
        let drain = self.cx.drain.clone();
        loop {
            let made = tokio::select! {
                () = drain.stopping() => return self.finish().await,
                made = self.link.channel(Deadline::after(Duration::MAX)) => made,
            };
            let (channel, live) = match made {
                Ok(made) => made,
                Err(why) => return Err(self.setup(why)),
            };
            let declared = self.receiver.config.topology.declare(&channel);
            match tokio::time::timeout(BROKER_TIMEOUT, declared).await {
                Ok(Ok(())) => {}
                Ok(Err(why)) if live.is_up() => return Err(self.setup(why)),
                Ok(Err(_)) | Err(_) => {
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            }
            let end = self.round(&channel, &live).await;
            self.cx.endpoint.forget_addresses();
            match end {
                End::Drain | End::Quit => return self.finish().await,
                End::Restart => {}
                End::Lost(why) => {
                    self.receiver.events.resumed(&why);
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    /// Consumes until something ends it. The consumers then take no more, and are left to finish.
    async fn round(&mut self, channel: &Channel, live: &Arc<Live>) -> End {
        let stop = CancellationToken::new();
        let _stopped_at_the_end = stop.clone().drop_guard();
        let queues = &self.receiver.config.topology.queues;
        let mut consumers = Vec::with_capacity(queues.len());
        let (ended_tx, mut ended) = mpsc::channel(queues.len());
        for queue in queues {
            let made = self.link.channel(Deadline::after(BROKER_TIMEOUT)).await;
            let (channel, live) = match made {
                Ok(made) => made,
                Err(why) => return End::Lost(why),
            };
            let channel = (channel, live);
            let consumer =
                consume(self.receiver.clone(), channel, queue.name.as_str().into(), stop.clone(), ended_tx.clone());
            consumers.push(AbortOnDropHandle::new(self.cx.lanes.next().spawn(consumer)));
        }
        let names: Vec<_> = queues.iter().map(|queue| queue.name.as_str()).collect();
        self.cx.endpoint.announce(format!("{} ({})", self.receiver.config.broker, names.join(", ")));
        drop(ended_tx);
        let end = loop {
            tokio::select! {
                () = self.cx.drain.stopping() => break End::Drain,
                why = ended.recv() => break End::Lost(why.unwrap_or_else(|| "a consumer ended".into())),
                command = self.commands.recv() => match command {
                    Some(Command::Quit) => break End::Quit,
                    Some(Command::Restart) => break End::Restart,
                    Some(Command::Join(group)) => self.bind(channel, live, &group, true).await,
                    Some(Command::Leave(group)) => self.bind(channel, live, &group, false).await,
                    None => break End::Drain,
                },
            }
        };
        self.leaving.retain(|consumer| !consumer.is_finished());
        self.leaving.extend(consumers.into_iter().filter(|consumer| !consumer.is_finished()));
        end
    }

    /// An application's own queue gets, or gets no more, what is said to all of a group.
    async fn bind(&self, channel: &Channel, live: &Live, group: &str, join: bool) {
        let Some(application) = &self.receiver.config.application else { return };
        let binding =
            Binding::new(APPLICATION_EXCHANGE, &application.own_queue, format!("{}#{group}", application.name));
        let done = async {
            if join {
                return binding.declare(channel).await;
            }
            let (queue, exchange, key) = (&*binding.queue, &*binding.exchange, &*binding.key);
            let unbound = channel.queue_unbind(queue.into(), exchange.into(), key.into(), FieldTable::default()).await;
            unbound.map_err(|error| error.to_string())
        };
        match tokio::time::timeout(BROKER_TIMEOUT, done).await {
            Ok(Err(why)) if live.is_up() => self.receiver.events.resumed(&why),
            Ok(_) | Err(_) => {}
        }
    }

    /// Waits for what is in work.
    async fn finish(self) -> Result<(), InterfaceError> {
        join_all(self.leaving).await;
        Ok(())
    }

    fn setup(&self, text: String) -> InterfaceError {
        InterfaceError::Setup { interface: self.cx.endpoint.interface.to_string(), text, source: None }
    }
}

/// Consumes one queue on the lane that it runs on. Tells at once why it takes no more; returns when everything it took is
/// settled.
async fn consume(
    receiver: Arc<Receiver>,
    (channel, live): (Channel, Arc<Live>),
    queue: Arc<str>,
    stop: CancellationToken,
    ended: mpsc::Sender<String>,
) {
    let prefetch = receiver.config.prefetch;
    let begun = async {
        channel.basic_qos(prefetch, BasicQosOptions::default()).await?;
        let options = BasicConsumeOptions::default();
        channel.basic_consume(queue.as_ref().into(), "".into(), options, FieldTable::default()).await
    };
    let mut deliveries = match begun.await {
        Ok(deliveries) => deliveries,
        Err(error) => {
            // The round has ended for another reason if nobody listens.
            let _ = ended.try_send(format!("cannot consume queue {queue}: {error}"));
            return;
        }
    };
    let (verdicts, waiting) = mpsc::unbounded_channel();
    let settler = AbortOnDropHandle::new(tokio::spawn(settle(channel.clone(), waiting, prefetch)));
    let mut in_work: FuturesUnordered<BoxFuture<'static, (u64, Verdict)>> = FuturesUnordered::new();
    let why = loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => break "stopped".to_owned(),
            Some(verdict) = in_work.next() => {
                // The receiver is gone when the channel is.
                let _ = verdicts.send(verdict);
            }
            delivery = deliveries.next(), if in_work.len() < prefetch.into() => match delivery {
                Some(Ok(delivery)) => {
                    let work = receiver.clone().receive(queue.clone(), delivery, channel.id(), live.clone());
                    if in_work.len() < LOCAL_MAX {
                        in_work.push(work.boxed());
                    } else {
                        in_work.push(elsewhere(&receiver, work.boxed()));
                    }
                }
                Some(Err(error)) => break format!("queue {queue}: {error}"),
                None => break format!("queue {queue}: the broker cancelled the consumer: was the queue deleted?"),
            },
        }
    };
    let _ = ended.try_send(why);
    let tag = deliveries.tag();
    // What the broker has sent beyond this goes back with the end of the channel.
    let _ = tokio::time::timeout(BROKER_TIMEOUT, channel.basic_cancel(tag, BasicCancelOptions::default())).await;
    while let Some(verdict) = in_work.next().await {
        let _ = verdicts.send(verdict);
    }
    drop(verdicts);
    let _ = tokio::time::timeout(BROKER_TIMEOUT, settler).await;
    let _ = tokio::time::timeout(BROKER_TIMEOUT, channel.close(200, "done".into())).await;
}

/// The work, on the next lane.
fn elsewhere(receiver: &Receiver, work: BoxFuture<'static, (u64, Verdict)>) -> BoxFuture<'static, (u64, Verdict)> {
    let task = AbortOnDropHandle::new(receiver.cx.lanes.next().spawn(work));
    async move {
        match task.await {
            Ok(verdict) => verdict,
            // The lane is gone, and the process ends: the delivery goes back to its queue.
            Err(_) => std::future::pending().await,
        }
    }
    .boxed()
}
