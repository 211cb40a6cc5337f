//! Error codes: what a peer is told. The thousands say what the client does next.

/// What a client does about an error, by the thousands of its code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorClass {
    /// 1xxx: the same request again, on this connection, later.
    RetryHere,
    /// 2xxx: reconnect with backoff.
    Reconnect,
    /// 3xxx: get another token (or log in with a token instead of the ticket).
    RefreshToken,
    /// 4xxx: do not retry; the request or the client is wrong.
    DoNotRetry,
    /// 5xxx: stop, do not reconnect by itself, and tell the user.
    Stop,
}

impl ErrorClass {
    /// The class of a number, whether the code itself is known or not.
    #[must_use]
    pub fn of(number: u32) -> Self {
        match number / 1000 {
            1 => Self::RetryHere,
            2 => Self::Reconnect,
            3 => Self::RefreshToken,
            4 => Self::DoNotRetry,
            _ => Self::Stop,
        }
    }
}

macro_rules! error_codes {
    ($($(#[doc = $doc:literal])* $name:ident = $code:literal, $closes:literal, $text:literal;)*) => {
        /// Every error code of the protocol.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u16)]
        pub enum ErrorCode {
            $($(#[doc = $doc])* $name = $code,)*
        }

        impl ErrorCode {
            /// All codes, ascending.
            pub const ALL: &'static [ErrorCode] = &[$(ErrorCode::$name),*];

            /// The code with this number, if there is one.
            #[must_use]
            pub fn from_number(number: u32) -> Option<Self> {
                match number {
                    $($code => Some(Self::$name),)*
                    _ => None,
                }
            }

            /// Whether the server closes the connection after this error.
            #[must_use]
            pub fn closes(self) -> bool {
                match self {
                    $(Self::$name => $closes,)*
                }
            }

            /// One line for people: what is wrong.
            #[must_use]
            pub fn text(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }
        }
    };
}

error_codes! {
    /// The server has no room for this request now.
    Busy = 1001, false, "busy: send it again later";
    /// The recipient's inbox has reached its quota.
    RecipientFull = 1002, false, "the recipient's inbox is full";
    /// An earlier message of this conversation was rejected and has not come back.
    AfterRejected = 1003, false, "an earlier message of this conversation was rejected: send that first";
    /// The device, or its user, sends faster than it may.
    RateLimited = 1004, false, "too many messages: send it again later";
    /// The server is going away.
    ShuttingDown = 2001, true, "the server is shutting down";
    /// No login within the time allowed.
    LoginTimeout = 2002, true, "no complete login within the time allowed";
    /// Nothing was heard for longer than the agreed keep-alive allows.
    KeepAliveTimeout = 2003, true, "nothing heard within the agreed keep-alive";
    /// No connection can be admitted now.
    ConnectionsFull = 2004, true, "no room for another connection";
    /// Too much waits unread on this connection.
    SlowReader = 2005, true, "too much waits unread on this connection";
    /// More logins come than the server may spend itself on.
    LoginsBusy = 2006, true, "too many logins at once: reconnect later";
    /// The preamble names a server key that is not, or no longer, there.
    ServerKeyUnknown = 2007, true, "this server has no key of that number: ask for its key with Noise XX";
    /// A direction's counter is at its end.
    RecordsSpent = 2008, true, "this connection has carried as many records as it may: reconnect";
    /// The token's `exp` has passed.
    TokenExpired = 3001, true, "the token has expired";
    /// The token's signature does not verify.
    TokenSignature = 3002, true, "the token's signature is wrong";
    /// The token is signed with an algorithm that is not accepted.
    TokenAlgorithm = 3003, true, "the token's algorithm is not its key's";
    /// The token is meant for another service.
    TokenAudience = 3004, true, "the token's audience is wrong";
    /// The token cannot be read, or a claim is missing or of the wrong form.
    TokenMalformed = 3005, true, "the token cannot be read, or lacks sub, device, aud or exp";
    /// The ticket's life is over.
    TicketExpired = 3006, true, "the resume ticket has expired";
    /// The ticket is of an earlier generation or of other data.
    TicketStale = 3007, true, "the resume ticket is stale";
    /// The ticket was not sealed by this server.
    TicketInvalid = 3008, true, "the resume ticket was not made by this server";
    /// The token's `nbf` lies ahead.
    TokenNotYetValid = 3009, true, "the token is not valid yet";
    /// No device of this number is registered with the key that the handshake showed, whether or not there is a user.
    DeviceUnknown = 3010, true, "the device is not registered with this key: log in with a token";
    /// The token's `cnf` names another key than the handshake showed, or none.
    TokenKey = 3011, true, "the token names another device key";
    /// A record of no bytes.
    RecordEmpty = 4001, true, "a record must hold at least type and flags";
    /// A record longer than its sender may send.
    RecordTooLong = 4002, true, "the record is too long";
    /// A type without bit 7 that this server does not know.
    TypeUnknown = 4003, false, "unknown record type";
    /// A known type that is not allowed in this state or direction.
    OutOfState = 4004, true, "this record is not allowed in this state";
    /// The protobuf of a record cannot be read.
    BadProtobuf = 4005, true, "the record's protobuf cannot be read";
    /// An acknowledgement of what was never sent.
    AckBeyondSent = 4006, true, "acknowledged more than was sent";
    /// A payload beyond the limit.
    PayloadTooLong = 4007, false, "the payload is longer than 32 KiB";
    /// A client message id that is not 16 bytes.
    ClientMessageIdInvalid = 4008, false, "a client message id has 16 bytes";
    /// A conversation id that is not 16 bytes, or of a kind unknown here.
    ConversationInvalid = 4009, false, "no such conversation";
    /// The sender is no party to the conversation.
    NotAMember = 4010, false, "not a party to this conversation";
    /// A read mark beyond what a device of the user has acknowledged.
    ReadBeyondDelivered = 4011, false, "marked as read what no device has acknowledged";
    /// A request that is unknown here, or whose fields are wrong.
    RequestInvalid = 4012, false, "the request is unknown, or a field of it is wrong";
    /// The connection did not open with `CV`.
    BadMagic = 4020, true, "a connection opens with the letters CV";
    /// No protocol version in common.
    VersionUnsupported = 4021, true, "no protocol version in common";
    /// A handshake type not offered here.
    HandshakeUnsupported = 4022, true, "this handshake type is not offered";
    /// A cipher suite not offered here, or refused on this address.
    SuiteRefused = 4023, true, "this cipher suite is refused here";
    /// A handshake message that is empty, too long or cannot be read.
    BadHandshake = 4024, true, "the login cannot be read";
    /// A handshake message that was not made for this server, or was changed on its way.
    HandshakeFailed = 4025, true, "the handshake does not open: wrong key, or changed on its way";
    /// A record that was changed, repeated, left out or made by somebody else.
    RecordForged = 4026, true, "a record does not open";
    /// A request about a device that the user does not have.
    DeviceNotFound = 4027, false, "the user has no such device";
    /// A device's name beyond the limit.
    NameTooLong = 4028, false, "a device's name has at most 64 bytes";
    /// A newer connection of the same device has taken over.
    Replaced = 5001, true, "another connection of this device took over";
    /// The user has as many devices as there may be.
    DevicesFull = 5002, true, "the user has 8 devices already";
    /// A device of the user's has removed this one.
    DeviceRemoved = 5003, true, "this device was removed";
}

impl ErrorCode {
    /// The number on the wire.
    #[must_use]
    pub fn number(self) -> u32 {
        self as u32
    }

    /// What a client does about it.
    #[must_use]
    pub fn class(self) -> ErrorClass {
        ErrorClass::of(self.number())
    }
}
