//! The typed path for `list<u8>` through a binding. wasmtime's dynamic values take 40 bytes for each byte of a list, its typed
//! functions one copy. So the most common function types with bytes have typed functions here, on the caller's side and on
//! the callee's. A carrier is chosen by a function's signature when a version is loaded; all other types go by `Val`.
//!
//! | parameters | results |
//! |---|---|
//! | `list<u8>`, alone or after a `string`, two `string`s or a `u64`, or before a `string` or another `list<u8>` | none, `list<u8>`, `string`, `u64`, `option<list<u8>>`, `result<_, string>`, `result<list<u8>, string>`, `result<string, string>` |
//! | none, a `string`, two `string`s, a `u64`, a `string` and two `u64` | `list<u8>`, `option<list<u8>>`, `result<list<u8>, string>`, `result<option<list<u8>>, string>` |

use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use wasmtime::component::{ComponentNamedList, Func, Lift, LinkerInstance, Lower, Val};
use wasmtime::{Store, StoreContextMut};

use super::binding::BoundFunction;
use super::value::{Item, Shape, Side, Signature};
use crate::host_api::{GuestState, bound};

type Running<'s> = Pin<Box<dyn Future<Output = wasmtime::Result<Vec<Item>>> + Send + 's>>;

/// A function type that is known when the host is compiled.
pub trait Carrier: Send + Sync {
    fn fits(&self, signature: &Signature) -> bool;

    /// Links an import of a guest to the bound function.
    ///
    /// # Errors
    /// Returns wasmtime's error when the name is defined already.
    fn link(
        &self,
        linker: &mut LinkerInstance<'_, GuestState>,
        name: &str,
        function: Arc<BoundFunction>,
    ) -> wasmtime::Result<()>;

    /// Calls an export of a guest.
    fn call<'s>(&self, func: Func, store: &'s mut Store<GuestState>, arguments: Vec<Item>) -> Running<'s>;
}

/// Returns the carrier for functions of this type, if there is one.
pub fn find(signature: &Signature) -> Option<&'static dyn Carrier> {
    CARRIERS.iter().copied().flatten().copied().find(|carrier| !signature.is_async() && carrier.fits(signature))
}

struct Typed<P, R>(PhantomData<fn(P) -> R>);

impl<P, R> Carrier for Typed<P, R>
where
    P: Row + ComponentNamedList + Lift + Lower + Send + Sync + 'static,
    R: Row + ComponentNamedList + Lift + Lower + Send + Sync + 'static,
{
    fn fits(&self, signature: &Signature) -> bool {
        let same = |side, shapes: Vec<Shape>| signature.shapes(side).into_iter().eq(&shapes);
        same(Side::Arguments, P::shapes()) && same(Side::Result, R::shapes())
    }

    fn link(
        &self,
        linker: &mut LinkerInstance<'_, GuestState>,
        name: &str,
        function: Arc<BoundFunction>,
    ) -> wasmtime::Result<()> {
        linker.func_wrap_async(name, move |store: StoreContextMut<'_, GuestState>, arguments: P| {
            let (caller, function) = (bound::Caller::of(store.data()), function.clone());
            Box::new(async move {
                let results = bound::call(caller, &function, arguments.into_items()).await?;
                R::from_items(results).ok_or_else(|| misfit(&function.name))
            })
        })
    }

    fn call<'s>(&self, func: Func, store: &'s mut Store<GuestState>, arguments: Vec<Item>) -> Running<'s> {
        Box::pin(async move {
            let func = func.typed::<P, R>(&mut *store)?;
            let arguments = P::from_items(arguments).ok_or_else(|| misfit("a typed function"))?;
            Ok(func.call_async(store, arguments).await?.into_items())
        })
    }
}

/// Makes the error for values of another type, which is a bug of the host, since both sides agree on the type.
fn misfit(name: &str) -> wasmtime::Error {
    wasmtime::Error::msg(format!("the values of {name} are not of its type"))
}

/// The parameters of a function, or its result, as a tuple.
trait Row: Sized {
    fn shapes() -> Vec<Shape>;
    fn from_items(items: Vec<Item>) -> Option<Self>;
    fn into_items(self) -> Vec<Item>;
}

macro_rules! row {
    ($($element:ident),*) => {
        impl<$($element: Element),*> Row for ($($element,)*) {
            fn shapes() -> Vec<Shape> {
                vec![$($element::shape()),*]
            }

            fn from_items(items: Vec<Item>) -> Option<Self> {
                let mut items = items.into_iter();
                let row = ($($element::from_item(items.next()?)?,)*);
                items.next().is_none().then_some(row)
            }

            #[expect(non_snake_case, reason = "a value is named like its type")]
            fn into_items(self) -> Vec<Item> {
                let ($($element,)*) = self;
                vec![$($element.into_item()),*]
            }
        }
    };
}

impl Row for () {
    fn shapes() -> Vec<Shape> {
        Vec::new()
    }

    fn from_items(items: Vec<Item>) -> Option<Self> {
        items.is_empty().then_some(())
    }

    fn into_items(self) -> Vec<Item> {
        Vec::new()
    }
}

row!(A);
row!(A, B);
row!(A, B, C);

/// The type of a parameter, of a result, or of the value within an option or a result.
trait Element: Sized {
    fn shape() -> Shape;
    fn from_item(item: Item) -> Option<Self>;
    fn into_item(self) -> Item;
}

impl Element for Bytes {
    fn shape() -> Shape {
        Shape::Bytes
    }

    fn from_item(item: Item) -> Option<Self> {
        match item {
            Item::Bytes(bytes) => Some(bytes),
            Item::Val(_) | Item::Some(_) | Item::Ok(_) => None,
        }
    }

    fn into_item(self) -> Item {
        Item::Bytes(self)
    }
}

macro_rules! simple {
    ($type:ty, $case:ident) => {
        impl Element for $type {
            fn shape() -> Shape {
                Shape::$case
            }

            fn from_item(item: Item) -> Option<Self> {
                match item {
                    Item::Val(Val::$case(value)) => Some(value),
                    _ => None,
                }
            }

            fn into_item(self) -> Item {
                Item::Val(Val::$case(self))
            }
        }
    };
}

simple!(String, String);
simple!(u64, U64);

impl<T: Element> Element for Option<T> {
    fn shape() -> Shape {
        Shape::Option(Box::new(T::shape()))
    }

    fn from_item(item: Item) -> Option<Self> {
        match item {
            Item::Some(item) => T::from_item(*item).map(Some),
            Item::Val(Val::Option(Some(value))) => T::from_item(Item::Val(*value)).map(Some),
            Item::Val(Val::Option(None)) => Some(None),
            Item::Val(_) | Item::Bytes(_) | Item::Ok(_) => None,
        }
    }

    fn into_item(self) -> Item {
        self.map_or(Item::Val(Val::Option(None)), |value| Item::Some(Box::new(value.into_item())))
    }
}

/// Carries a `result` with a payload.
impl<T: Element> Element for Result<T, String> {
    fn shape() -> Shape {
        Shape::Result(Some(Box::new(T::shape())), Some(Box::new(Shape::String)))
    }

    fn from_item(item: Item) -> Option<Self> {
        match item {
            Item::Ok(item) => T::from_item(*item).map(Ok),
            Item::Val(Val::Result(Ok(Some(value)))) => T::from_item(Item::Val(*value)).map(Ok),
            Item::Val(Val::Result(Err(Some(error)))) => String::from_item(Item::Val(*error)).map(Err),
            _ => None,
        }
    }

    fn into_item(self) -> Item {
        match self {
            Ok(value) => Item::Ok(Box::new(value.into_item())),
            Err(error) => Item::Val(Val::Result(Err(Some(Box::new(Val::String(error)))))),
        }
    }
}

/// Carries a `result` without a payload.
impl Element for Result<(), String> {
    fn shape() -> Shape {
        Shape::Result(None, Some(Box::new(Shape::String)))
    }

    fn from_item(item: Item) -> Option<Self> {
        match item {
            Item::Val(Val::Result(Ok(None))) => Some(Ok(())),
            Item::Val(Val::Result(Err(Some(error)))) => String::from_item(Item::Val(*error)).map(Err),
            _ => None,
        }
    }

    fn into_item(self) -> Item {
        Item::Val(Val::Result(match self {
            Ok(()) => Ok(None),
            Err(error) => Err(Some(Box::new(Val::String(error)))),
        }))
    }
}

macro_rules! carriers {
    ($parameters:ty: $($result:ty),*) => {
        &[$(&Typed::<$parameters, $result>(PhantomData)),*]
    };
}

/// Makes the carriers for parameters with bytes.
macro_rules! taking {
    ($parameters:ty) => {
        carriers!($parameters: (), (Bytes,), (String,), (u64,), (Option<Bytes>,), (Result<(), String>,),
            (Result<Bytes, String>,), (Result<String, String>,))
    };
}

/// Makes the carriers for parameters without bytes.
macro_rules! giving {
    ($parameters:ty) => {
        carriers!($parameters: (Bytes,), (Option<Bytes>,), (Result<Bytes, String>,), (Result<Option<Bytes>, String>,))
    };
}

/// The carriers of the table at the top of this file.
const CARRIERS: &[&[&dyn Carrier]] = &[
    taking!((Bytes,)),
    taking!((String, Bytes)),
    taking!((String, String, Bytes)),
    taking!((u64, Bytes)),
    taking!((Bytes, String)),
    taking!((Bytes, Bytes)),
    giving!(()),
    giving!((String,)),
    giving!((String, String)),
    giving!((u64,)),
    giving!((String, u64, u64)),
];
