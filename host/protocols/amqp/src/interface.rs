//! Interface `amqp`: declares its topology and consumes every queue, starts again when the connection or a channel is
//! lost, and drains. While it consumes it repeats the declarations every now and then, so that a queue that somebody
//! deletes comes back.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::join_all;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::config::AmqpConfig;
use super::consume::QueueConsumer;
use super::deliver::DeliveryReceiver;
use super::events::AmqpEvents;
use super::link::{BrokerLink, LiveConnection, Purpose};
use super::replies::ReplySender;
use super::topology::QueueBinding;
use wasmcage_core::backoff::Backoff;
use wasmcage_core::request::Deadline;
use wasmcage_protocol::{Address, Interface, InterfaceContext, InterfaceError, ListenGuard};

/// How often the declarations are repeated.
const DECLARE_INTERVAL: Duration = Duration::from_secs(10);
/// The pause before a queue is consumed again whose consumer ended; doubled, up to `DECLARE_INTERVAL`, while it keeps
/// ending.
const PAUSE: Duration = Duration::from_millis(200);
/// The time the broker has to answer.
const BROKER_TIMEOUT: Duration = Duration::from_secs(10);
/// The most commands in the queue; whoever sends one more waits.
const COMMANDS_MAX: usize = 16;

pub(super) struct AmqpInterface {
    config: AmqpConfig,
}

/// A command that a message gave to the interface.
#[derive(Debug)]
pub(super) enum InterfaceCommand {
    Quit,
    Restart,
    /// Binds the application's own queue to a group.
    Join(QueueBinding),
    Leave(QueueBinding),
}

/// Why consuming stopped.
enum StopReason {
    Drain,
    Quit,
    Restart,
    Lost(String),
    /// The broker lets no queue be consumed, for this reason.
    Refused(String),
}

/// The index of a queue whose consumer has ended, and why.
type EndedConsumer = (usize, String);

impl AmqpInterface {
    pub(super) fn new(config: AmqpConfig) -> Self {
        Self { config }
    }
}

#[async_trait]
impl Interface for AmqpInterface {
    async fn run(self: Box<Self>, cx: InterfaceContext) -> Result<(), InterfaceError> {
        let AmqpConfig { broker, cage_directory, topology, reply_exchange, .. } = &self.config;
        let runtime = Handle::current();
        let link = BrokerLink::shared(cage_directory, broker, Purpose::Consume, &runtime);
        let publishing = BrokerLink::shared(cage_directory, broker, Purpose::Publish, &runtime);
        let replies = ReplySender::new(publishing.clone(), reply_exchange.clone(), &topology.exchanges);
        let events = AmqpEvents::new(cx.endpoint.cage.clone(), cx.endpoint.interface.clone());
        let (commands_tx, commands) = mpsc::channel(COMMANDS_MAX);
        let consumers = topology.queues.iter().map(|_| None).collect();
        let receiver = Arc::new(DeliveryReceiver::new(self.config, cx.clone(), events, replies, commands_tx));
        let (problems, consumed, ending) = (Vec::new(), Vec::new(), Vec::new());
        ConsumeLoop { cx, link, publishing, receiver, commands, consumers, problems, consumed, listening: None, ending }
            .run()
            .await
    }
}

/// Declares and consumes, once for each connection that is made.
struct ConsumeLoop {
    cx: InterfaceContext,
    link: Arc<BrokerLink>,
    publishing: Arc<BrokerLink>,
    receiver: Arc<DeliveryReceiver>,
    commands: mpsc::Receiver<InterfaceCommand>,
    /// The consumer of each queue, if it has one now.
    consumers: Vec<Option<AbortOnDropHandle<()>>>,
    /// Why something cannot be declared or consumed now.
    problems: Vec<String>,
    /// The names of the queues that are consumed, as last reported to the endpoint.
    consumed: Vec<String>,
    /// Held while there are such queues.
    listening: Option<ListenGuard>,
    /// Consumers that take no more deliveries, and finish those in flight.
    ending: Vec<AbortOnDropHandle<()>>,
}

impl ConsumeLoop {
    async fn run(mut self) -> Result<(), InterfaceError> {
        let drain = self.cx.drain.clone();
        let (mut consuming, mut publishing) = (self.link.changes(), self.publishing.changes());
        loop {
            self.report_status();
            let live = tokio::select! {
                () = drain.stopping() => return self.finish().await,
                live = self.link.live() => live,
                Ok(()) = consuming.changed() => continue,
                Ok(()) = publishing.changed() => continue,
            };
            let reason = self.consume(&live).await;
            self.release_consumers();
            match reason {
                StopReason::Drain | StopReason::Quit => return self.finish().await,
                StopReason::Restart => {}
                StopReason::Lost(why) => {
                    self.receiver.events.resumed(&why);
                    tokio::time::sleep(PAUSE).await;
                }
                StopReason::Refused(text) => {
                    let interface = self.cx.endpoint.interface.to_string();
                    self.finish().await?;
                    return Err(InterfaceError::Setup { interface, text, source: None });
                }
            }
        }
    }

    /// Consumes all queues until something stops that. The consumers then take no more deliveries, and finish by
    /// themselves.
    async fn consume(&mut self, live: &Arc<LiveConnection>) -> StopReason {
        let drain = self.cx.drain.clone();
        let stop = CancellationToken::new();
        let _stopped_at_the_end = stop.clone().drop_guard();
        let (ended_tx, mut ended) = mpsc::unbounded_channel::<EndedConsumer>();
        let (mut consuming, mut publishing) = (self.link.changes(), self.publishing.changes());
        let (mut declare_at, mut backoff) = (Instant::now(), Backoff::new(PAUSE, DECLARE_INTERVAL));
        // The next declaration is early, because of a consumer that ended.
        let mut is_early = false;
        loop {
            tokio::select! {
                () = drain.stopping() => return StopReason::Drain,
                why = self.link.lost(live) => return StopReason::Lost(why),
                Some((queue, why)) = ended.recv() => {
                    if !live.is_up() {
                        return StopReason::Lost(why);
                    }
                    self.receiver.events.consumer_ended(&why);
                    self.ending.retain(|consumer| !consumer.is_finished());
                    self.ending.extend(self.consumers[queue].take());
                    self.announce();
                    (declare_at, is_early) = (Instant::now() + backoff.pause(), true);
                }
                () = tokio::time::sleep_until(declare_at) => {
                    if !std::mem::take(&mut is_early) {
                        backoff.reset();
                    }
                    let done = tokio::select! {
                        () = drain.stopping() => return StopReason::Drain,
                        done = self.declare_and_consume(live, &stop, &ended_tx) => done,
                    };
                    if let Err(reason) = done {
                        return reason;
                    }
                    declare_at = Instant::now() + DECLARE_INTERVAL;
                }
                Some(command) = self.commands.recv() => {
                    let stopped = tokio::select! {
                        () = drain.stopping() => return StopReason::Drain,
                        stopped = self.execute(command, live) => stopped,
                    };
                    if let Some(reason) = stopped {
                        return reason;
                    }
                }
                Ok(()) = consuming.changed() => self.report_status(),
                Ok(()) = publishing.changed() => self.report_status(),
            }
        }
    }

    /// Declares everything, and consumes the queues that have no consumer. What the broker refuses is reported, and
    /// tried again at the next call.
    async fn declare_and_consume(
        &mut self,
        live: &LiveConnection,
        stop: &CancellationToken,
        ended: &mpsc::UnboundedSender<EndedConsumer>,
    ) -> Result<(), StopReason> {
        let (receiver, groups) = (self.receiver.clone(), self.receiver.groups());
        let topology = &receiver.config.topology;
        let declared = tokio::time::timeout(BROKER_TIMEOUT, topology.declare(&groups, &self.link)).await;
        let mut problems = match declared {
            Ok(Err(why)) => return Err(StopReason::Lost(why)),
            Err(_) => vec!["the broker does not answer".to_owned()],
            Ok(Ok(declared)) => {
                let mut problems = declared.problems;
                let missing = |index: &usize| declared.queues[*index] && self.consumers[*index].is_none();
                let missing: Vec<usize> = (0..topology.queues.len()).filter(missing).collect();
                for index in missing {
                    match QueueConsumer::open(&self.link, &topology.queues[index].name, receiver.config.prefetch).await
                    {
                        Ok(consuming) => self.consumers[index] = Some(self.spawn(consuming, index, stop, ended)),
                        Err(why) if live.is_up() => problems.push(why),
                        Err(why) => return Err(StopReason::Lost(why)),
                    }
                }
                problems
            }
        };
        std::mem::swap(&mut self.problems, &mut problems);
        let is_new = |problem: &&String| !problems.contains(problem);
        self.problems.iter().filter(is_new).for_each(|problem| receiver.events.problem(problem));
        self.announce();
        self.report_status();
        match self.consumed.is_empty() && !self.problems.is_empty() && live.is_up() {
            true => Err(StopReason::Refused(self.problems.join("; "))),
            false => Ok(()),
        }
    }

    /// Runs the consumer on the next lane.
    fn spawn(
        &self,
        consuming: QueueConsumer,
        index: usize,
        stop: &CancellationToken,
        ended: &mpsc::UnboundedSender<EndedConsumer>,
    ) -> AbortOnDropHandle<()> {
        let ended = ended.clone();
        // Nobody receives this if consuming has stopped for another reason.
        let ended = move |why| drop(ended.send((index, why)));
        let run = consuming.run(self.receiver.clone(), stop.clone(), ended);
        AbortOnDropHandle::new(self.cx.lanes.next().spawn(run))
    }

    /// Executes a command; returns a reason if it stops the consumers.
    async fn execute(&self, command: InterfaceCommand, live: &LiveConnection) -> Option<StopReason> {
        let (binding, join) = match command {
            InterfaceCommand::Quit => return Some(StopReason::Quit),
            InterfaceCommand::Restart => return Some(StopReason::Restart),
            InterfaceCommand::Join(binding) => (binding, true),
            InterfaceCommand::Leave(binding) => (binding, false),
        };
        let done = async {
            let (channel, _) = self.link.channel(Deadline::after(BROKER_TIMEOUT)).await?;
            match join {
                true => binding.declare(&channel).await,
                false => binding.remove(&channel).await,
            }
        };
        match tokio::time::timeout(BROKER_TIMEOUT, done).await {
            Ok(Err(why)) if live.is_up() => self.receiver.events.problem(&why),
            // The next declaration binds the groups, too.
            Ok(_) | Err(_) => {}
        }
        None
    }

    /// Reports to the endpoint which queues are consumed now, if that has changed.
    fn announce(&mut self) {
        let queues = self.receiver.config.topology.queues.iter().zip(&self.consumers);
        let consumed: Vec<String> =
            queues.filter(|(_, consumer)| consumer.is_some()).map(|(queue, _)| queue.name.to_string()).collect();
        if consumed == self.consumed {
            return;
        }
        let address = || Address::Outside(format!("{} ({})", self.receiver.config.broker, consumed.join(", ")));
        self.listening = (!consumed.is_empty()).then(|| self.cx.endpoint.listen(address()));
        self.consumed = consumed;
    }

    /// Sets the endpoint's status: what does not work now.
    fn report_status(&self) {
        let mut problems = self.problems.clone();
        let broker = &self.receiver.config.broker;
        let publishing = self.publishing.problem().map(|why| format!("{broker}: {why}"));
        problems.extend(self.link.problem().map(|why| format!("{broker}: {why}")));
        // Mostly both connections have the same problem.
        problems.extend(publishing.filter(|problem| !problems.contains(problem)));
        self.cx.endpoint.set_status((!problems.is_empty()).then(|| problems.join("; ")));
    }

    /// Lets the consumers finish their deliveries in flight.
    fn release_consumers(&mut self) {
        self.ending.retain(|consumer| !consumer.is_finished());
        self.ending.extend(self.consumers.iter_mut().filter_map(Option::take));
        self.problems.clear();
        self.consumed.clear();
        self.listening = None;
    }

    /// Waits until no delivery is in flight.
    async fn finish(self) -> Result<(), InterfaceError> {
        self.cx.endpoint.set_status(None);
        join_all(self.ending).await;
        Ok(())
    }
}
