/**
 * One conversation over a Link: what was said, by offset; what waits to be sent; who types; who is online.
 *
 * A message has a place in one of two lists: `said` (offset → message, the server's word) or `unsent` (by
 * clientMessageId, in order of writing). It moves from the second to the first when its own `new_message` comes, so it
 * is shown once. After a reconnect the position asks for what was missed; where the server cannot give that
 * (`recovered: false`), the last messages are read again. Unsent ones are sent again under the same
 * clientMessageId, which the server stores once.
 *
 * Events: `messages`, `people`, `typing`, `notice` {text}.
 */

const LAST = 50;
const RETRY_MS = 2_000;
const TYPING_AGAIN_MS = 3_000;
const TYPING_PAUSE_MS = 5_000;

/** The message of a `new_message`, with the members that are drawn: an existing API or an event hook may leave them out. */
function shown({ data, offset, timestamp, userId: sender }) {
  const { userId, content, createdAt, role } = data;
  return {
    ...data,
    offset,
    userId: String(sender ?? userId ?? role ?? "unknown"),
    content: typeof content === "string" ? content : JSON.stringify(data),
    createdAt: Number.isNaN(Date.parse(createdAt)) ? timestamp : createdAt,
  };
}

export class Conversation extends EventTarget {
  #link;
  #roster;
  #position = null;
  #typingSince = 0;
  #typingTimer = null;
  #sending = Promise.resolve();
  #told = new Map();
  #knowsPeople = false;
  #listeners = new AbortController();

  said = new Map();
  unsent = new Map();
  people = new Set();
  typing = new Set();

  /**
   * @param {Link} link
   * @param {string} user this page's name
   * @param {string} id of the conversation
   * @param {() => Promise<string[]>} roster gives the users that are online now; events only tell of changes
   */
  constructor(link, user, id, roster) {
    super();
    this.#link = link;
    this.#roster = roster;
    this.user = user;
    this.id = id;
    this.channel = `conversation:${id}`;
    const options = { signal: this.#listeners.signal };
    link.addEventListener("open", () => this.#opened(), options);
    link.addEventListener("event", ({ detail }) => this.#received(detail.event), options);
    link.addEventListener("state", ({ detail }) => detail.state === "connected" || this.#lost(), options);
  }

  /** What is to be shown, oldest first; the last ones may be unsent (`state` pending or failed). */
  get messages() {
    const offsets = [...this.said.keys()].sort((a, b) => a - b);
    return [...offsets.map((offset) => this.said.get(offset)), ...this.unsent.values()];
  }

  send(content) {
    const message = {
      clientMessageId: crypto.randomUUID(),
      userId: this.user,
      content,
      createdAt: new Date().toISOString(),
      state: "pending",
    };
    this.unsent.set(message.clientMessageId, message);
    this.#changed("messages");
    this.stopTyping();
    this.#transmit(message);
  }

  /** Called for every change of the composer; tells the others at most every 3 s, and that it ended after 5 s. */
  startTyping() {
    const now = Date.now();
    if (now - this.#typingSince > TYPING_AGAIN_MS) {
      this.#typingSince = now;
      this.#link.tell("typing_start", { conversationId: this.id });
    }
    clearTimeout(this.#typingTimer);
    this.#typingTimer = setTimeout(() => this.stopTyping(), TYPING_PAUSE_MS);
  }

  stopTyping() {
    clearTimeout(this.#typingTimer);
    if (this.#typingSince) {
      this.#typingSince = 0;
      this.#link.tell("typing_stop", { conversationId: this.id });
    }
  }

  leave() {
    this.stopTyping();
    this.#listeners.abort();
  }

  async #opened() {
    try {
      const wanted = this.#position
        ? { channel: this.channel, position: this.#position }
        : { channel: this.channel, last: LAST };
      const { data } = await this.#link.ask("subscribe", wanted);
      const lost = this.#position !== null && data.recovered === false;
      // It stands before the events that follow, and each of them moves it on: a connection lost among them resumes there.
      this.#position = data.position ?? null;
      if (lost) {
        await this.#readAgain();
      }
      this.#say("");
    } catch (error) {
      this.#say(`Cannot open the conversation: ${error.message}`);
      return;
    }
    for (const message of this.unsent.values()) {
      if (message.state === "pending") {
        this.#transmit(message);
      }
    }
    await this.#meet();
  }

  async #readAgain() {
    const { data } = await this.#link.ask("history", { channel: this.channel, last: LAST, limit: LAST });
    this.said.clear();
    for (const event of data.events) {
      this.#received(event);
    }
    this.#changed("messages");
  }

  /** Take the roster, and over it what the socket told meanwhile; not where the socket itself told of everybody. */
  async #meet() {
    if (this.#knowsPeople) {
      return;
    }
    const told = new Map();
    this.#told = told;
    const users = await this.#roster().catch(() => []);
    if (this.#told !== told) {
      return;
    }
    this.people = new Set([...users, this.user]);
    for (const [user, present] of told) {
      this.#mark(this.people, user, present);
    }
    this.#changed("people");
  }

  /** One message at a time, so that the order of writing is the order of the conversation. */
  #transmit(message) {
    const { clientMessageId, content } = message;
    this.#sending = this.#sending.then(async () => {
      if (!this.unsent.has(clientMessageId)) {
        return;
      }
      try {
        await this.#link.ask("send_message", { conversationId: this.id, content, clientMessageId });
      } catch (error) {
        // What may succeed later stays pending: soon on this connection, at once on the next.
        if (!error.retryable) {
          message.state = "failed";
          message.failure = `${error.message} (${error.code})`;
          this.#changed("messages");
        } else if (this.#link.connected) {
          setTimeout(() => this.#transmit(message), RETRY_MS);
        }
      }
    });
  }

  #received(event) {
    if (event.channel === this.channel && Number.isInteger(event.offset)) {
      this.#advance(event.offset);
    }
    // Other systems and apps publish events under these names too, with whatever data they have.
    const data = event.data ?? {};
    const isOfUser = typeof data.userId === "string";
    switch (event.type) {
      case "new_message":
        if (event.channel === this.channel) {
          this.#say("");
          this.#keep(event);
        }
        break;
      case "typing_indicator":
        if (event.channel === this.channel && isOfUser && data.userId !== this.user) {
          this.#mark(this.typing, data.userId, data.isTyping);
          this.#changed("typing");
        }
        break;
      case "user_presence":
        if (isOfUser) {
          this.#told.set(data.userId, data.status === "online");
          this.#mark(this.people, data.userId, data.status === "online");
          this.#changed("people");
          if (data.status === "offline" && this.typing.delete(data.userId)) {
            this.#changed("typing");
          }
        }
        break;
      case "presence_mode":
        this.#meetAll(event.data.users);
        break;
      case "error":
        this.#say(event.data.message);
        break;
      default:
    }
  }

  /** Take who is online in place of what was known; without `users` only those who share a channel are told of. */
  #meetAll(users) {
    const knew = this.#knowsPeople;
    this.#knowsPeople = users !== undefined;
    // What a roster on its way says is older.
    this.#told = new Map();
    if (users !== undefined) {
      this.people = new Set([...users, this.user]);
      this.#changed("people");
      for (const user of [...this.typing].filter((user) => !this.people.has(user))) {
        this.typing.delete(user);
        this.#changed("typing");
      }
    } else if (knew) {
      this.#meet();
    }
  }

  #keep(event) {
    const message = shown(event);
    this.said.set(event.offset, message);
    if (message.userId === this.user && message.clientMessageId) {
      this.unsent.delete(message.clientMessageId);
    }
    if (this.typing.delete(message.userId)) {
      this.#changed("typing");
    }
    this.#changed("messages");
  }

  #advance(offset) {
    if (this.#position && offset > this.#position.offset) {
      this.#position.offset = offset;
    }
  }

  #lost() {
    this.#knowsPeople = false;
    this.#typingSince = 0;
    clearTimeout(this.#typingTimer);
    if (this.typing.size) {
      this.typing.clear();
      this.#changed("typing");
    }
    if (this.people.size) {
      this.people.clear();
      this.#changed("people");
    }
  }

  #mark(users, user, present) {
    if (present) {
      users.add(user);
    } else {
      users.delete(user);
    }
  }

  #say(text) {
    this.dispatchEvent(new CustomEvent("notice", { detail: { text } }));
  }

  #changed(what) {
    this.dispatchEvent(new CustomEvent(what));
  }
}
