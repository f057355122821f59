//! Interface `amqp`: declares, consumes every queue, begins anew when the broker or a channel is lost, and drains. While it
//! consumes it looks every now and then whether everything is still declared, so that what others delete comes back.

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
use super::consume::Consuming;
use super::deliver::Receiver;
use super::events::Events;
use super::link::{Link, Live, Purpose};
use super::replies::Replies;
use super::topology::Binding;
use wasmcage_core::backoff::Backoff;
use wasmcage_core::request::Deadline;
use wasmcage_protocol::{Address, Interface, InterfaceContext, InterfaceError, ListenGuard};

/// Between looks at what is declared.
const LOOK: Duration = Duration::from_secs(10);
/// Before what has ended begins anew; doubled, up to `LOOK`, as long as it goes on ending.
const PAUSE: Duration = Duration::from_millis(200);
/// For what is asked of a broker.
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
    /// The application's own queue gets what is said to all of a group.
    Join(Binding),
    Leave(Binding),
}

/// Why consuming stopped.
enum End {
    Drain,
    Quit,
    Restart,
    Lost(String),
    /// Nothing can be consumed, and the broker says why.
    Refused(String),
}

/// A queue whose consumer takes no more, by its number, and why.
type Ended = (usize, String);

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
        let link = Link::of(cage_directory, broker, Purpose::Consume, &runtime);
        let publishing = Link::of(cage_directory, broker, Purpose::Publish, &runtime);
        let replies = Replies::new(publishing.clone(), reply_exchange.clone(), &topology.exchanges);
        let events = Events::new(cx.endpoint.cage.clone(), cx.endpoint.interface.clone());
        let (commands_tx, commands) = mpsc::channel(COMMANDS_MAX);
        let consumers = topology.queues.iter().map(|_| None).collect();
        let receiver = Arc::new(Receiver::new(self.config, cx.clone(), events, replies, commands_tx));
        let (problems, consumed, leaving) = (Vec::new(), Vec::new(), Vec::new());
        Rounds { cx, link, publishing, receiver, commands, consumers, problems, consumed, listening: None, leaving }
            .run()
            .await
    }
}

/// The interface's life: rounds of declaring and consuming, one for each connection.
struct Rounds {
    cx: InterfaceContext,
    link: Arc<Link>,
    publishing: Arc<Link>,
    receiver: Arc<Receiver>,
    commands: mpsc::Receiver<Command>,
    /// One for each queue that is consumed now.
    consumers: Vec<Option<AbortOnDropHandle<()>>>,
    /// What cannot be declared or consumed now.
    problems: Vec<String>,
    /// The queues that are consumed, as the endpoint knows them.
    consumed: Vec<String>,
    /// While there are such queues.
    listening: Option<ListenGuard>,
    /// Consumers that take no more, and finish what they have.
    leaving: Vec<AbortOnDropHandle<()>>,
}

impl Rounds {
    async fn run(mut self) -> Result<(), InterfaceError> {
        let drain = self.cx.drain.clone();
        let (mut consuming, mut publishing) = (self.link.changes(), self.publishing.changes());
        loop {
            self.tell();
            let live = tokio::select! {
                () = drain.stopping() => return self.finish().await,
                live = self.link.live() => live,
                Ok(()) = consuming.changed() => continue,
                Ok(()) = publishing.changed() => continue,
            };
            let end = self.round(&live).await;
            self.release();
            match end {
                End::Drain | End::Quit => return self.finish().await,
                End::Restart => {}
                End::Lost(why) => {
                    self.receiver.events.resumed(&why);
                    tokio::time::sleep(PAUSE).await;
                }
                End::Refused(text) => {
                    let interface = self.cx.endpoint.interface.to_string();
                    self.finish().await?;
                    return Err(InterfaceError::Setup { interface, text, source: None });
                }
            }
        }
    }

    /// Consumes until something ends all of it. The consumers then take no more, and are left to finish.
    async fn round(&mut self, live: &Arc<Live>) -> End {
        let drain = self.cx.drain.clone();
        let stop = CancellationToken::new();
        let _stopped_at_the_end = stop.clone().drop_guard();
        // Each consumer tells its end once.
        let (ended_tx, mut ended) = mpsc::unbounded_channel::<Ended>();
        let (mut consuming, mut publishing) = (self.link.changes(), self.publishing.changes());
        let (mut look_at, mut backoff, mut is_hurried) = (Instant::now(), Backoff::new(PAUSE, LOOK), false);
        loop {
            tokio::select! {
                () = drain.stopping() => return End::Drain,
                why = self.link.lost(live) => return End::Lost(why),
                Some((queue, why)) = ended.recv() => {
                    if !live.is_up() {
                        return End::Lost(why);
                    }
                    self.receiver.events.consumer_ended(&why);
                    self.leaving.retain(|consumer| !consumer.is_finished());
                    self.leaving.extend(self.consumers[queue].take());
                    self.announce();
                    (look_at, is_hurried) = (Instant::now() + backoff.pause(), true);
                }
                () = tokio::time::sleep_until(look_at) => {
                    if !std::mem::take(&mut is_hurried) {
                        backoff.reset();
                    }
                    let looked = tokio::select! {
                        () = drain.stopping() => return End::Drain,
                        looked = self.look(live, &stop, &ended_tx) => looked,
                    };
                    if let Err(end) = looked {
                        return end;
                    }
                    look_at = Instant::now() + LOOK;
                }
                Some(command) = self.commands.recv() => {
                    let obeyed = tokio::select! {
                        () = drain.stopping() => return End::Drain,
                        obeyed = self.obey(command, live) => obeyed,
                    };
                    if let Some(end) = obeyed {
                        return end;
                    }
                }
                Ok(()) = consuming.changed() => self.tell(),
                Ok(()) = publishing.changed() => self.tell(),
            }
        }
    }

    /// Declares everything, and consumes what is not consumed yet. What the broker does not take is told, and tried again.
    async fn look(
        &mut self,
        live: &Live,
        stop: &CancellationToken,
        ended: &mpsc::UnboundedSender<Ended>,
    ) -> Result<(), End> {
        let (receiver, groups) = (self.receiver.clone(), self.receiver.groups());
        let topology = &receiver.config.topology;
        let declared = tokio::time::timeout(BROKER_TIMEOUT, topology.declare(&groups, &self.link)).await;
        let mut problems = match declared {
            Ok(Err(why)) => return Err(End::Lost(why)),
            Err(_) => vec!["the broker does not answer".to_owned()],
            Ok(Ok(declared)) => {
                let mut problems = declared.problems;
                let missing = |index: &usize| declared.queues[*index] && self.consumers[*index].is_none();
                let missing: Vec<usize> = (0..topology.queues.len()).filter(missing).collect();
                for index in missing {
                    match Consuming::begin(&self.link, &topology.queues[index].name, receiver.config.prefetch).await {
                        Ok(consuming) => self.consumers[index] = Some(self.spawn(consuming, index, stop, ended)),
                        Err(why) if live.is_up() => problems.push(why),
                        Err(why) => return Err(End::Lost(why)),
                    }
                }
                problems
            }
        };
        std::mem::swap(&mut self.problems, &mut problems);
        let is_new = |problem: &&String| !problems.contains(problem);
        self.problems.iter().filter(is_new).for_each(|problem| receiver.events.problem(problem));
        self.announce();
        self.tell();
        match self.consumed.is_empty() && !self.problems.is_empty() && live.is_up() {
            true => Err(End::Refused(self.problems.join("; "))),
            false => Ok(()),
        }
    }

    /// The consumer, on the next lane.
    fn spawn(
        &self,
        consuming: Consuming,
        index: usize,
        stop: &CancellationToken,
        ended: &mpsc::UnboundedSender<Ended>,
    ) -> AbortOnDropHandle<()> {
        let ended = ended.clone();
        // The round has ended for another reason if nobody listens.
        let ended = move |why| drop(ended.send((index, why)));
        let run = consuming.run(self.receiver.clone(), stop.clone(), ended);
        AbortOnDropHandle::new(self.cx.lanes.next().spawn(run))
    }

    /// What a message told. None: nothing ends by it.
    async fn obey(&self, command: Command, live: &Live) -> Option<End> {
        let (binding, join) = match command {
            Command::Quit => return Some(End::Quit),
            Command::Restart => return Some(End::Restart),
            Command::Join(binding) => (binding, true),
            Command::Leave(binding) => (binding, false),
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
            // Groups are bound with everything else at the next look.
            Ok(_) | Err(_) => {}
        }
        None
    }

    /// Tells the endpoint which queues are consumed now, when that has changed.
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

    /// Tells an operator what does not work now.
    fn tell(&self) {
        let mut troubles = self.problems.clone();
        let broker = &self.receiver.config.broker;
        let publishing = self.publishing.trouble().map(|why| format!("{broker}: {why}"));
        troubles.extend(self.link.trouble().map(|why| format!("{broker}: {why}")));
        // Mostly both connections have the same.
        troubles.extend(publishing.filter(|trouble| !troubles.contains(trouble)));
        self.cx.endpoint.set_status((!troubles.is_empty()).then(|| troubles.join("; ")));
    }

    /// The consumers of the round finish what they have.
    fn release(&mut self) {
        self.leaving.retain(|consumer| !consumer.is_finished());
        self.leaving.extend(self.consumers.iter_mut().filter_map(Option::take));
        self.problems.clear();
        self.consumed.clear();
        self.listening = None;
    }

    /// Waits for what is in work.
    async fn finish(self) -> Result<(), InterfaceError> {
        self.cx.endpoint.set_status(None);
        join_all(self.leaving).await;
        Ok(())
    }
}
