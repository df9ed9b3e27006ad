// The other views: local ports and port-forwards, what the DNS server was asked, and events as they happen.

import { closeForward, closeListener, copy } from "/dashboard/actions.js";
import { $, Rows, setAttr, setBadge, setText, show } from "/dashboard/dom.js";
import { age, bytes, clock, count } from "/dashboard/format.js";
import { serviceHash } from "/dashboard/services.js";
import { FORWARD_TONES, isClosable } from "/dashboard/status.js";

const FORWARD_ORDER = ["broken", "draining", "opening", "ready", "closed"];
const LEVELS = { info: ["busy", "Info"], warning: ["warn", "Warning"], error: ["bad", "Error"] };
const PROTOCOLS = { "SPDY/3.1+portforward.k8s.io": "SPDY in WebSocket", "v4.channel.k8s.io": "WebSocket" };
const EVENTS_SHOWN = 100;

export class ForwardsView {
  constructor() {
    this.forwards = new Rows($("forwards"), "t-forward", writeForward, (fields, row) => {
      fields.close.addEventListener("click", () => closeForward(fields.close, row.item.forward));
    });
    this.listeners = new Rows($("listeners").tBodies[0], "t-listener", writeListener, (fields, row) => {
      fields.copy.addEventListener("click", () => copy(fields.copy, row.item.address));
      fields.close.addEventListener("click", () => closeListener(fields.close, row.item));
    });
  }

  render(state, matches, nowS) {
    const order = ({ state: s }) => FORWARD_ORDER.indexOf(s);
    const forwards = [...state.forwards].filter(([, f]) =>
      matches(() => [f.namespace, f.pod, f.state, f.protocol, f.last_error].join(" ")),
    );
    forwards.sort(([a, f], [b, g]) => order(f) - order(g) || a.localeCompare(b));
    this.forwards.render(
      forwards.map(([key, forward]) => [key, { forward, nowS }]),
      $("forwards").querySelector("tbody :focus") !== null,
    );
    show($("forwards"), forwards.length > 0);
    show($("no-forwards"), state.forwards.size === 0);
    const listeners = [...state.listeners].filter(([, l]) =>
      matches(() => [l.address, l.target, l.namespace, l.failure].join(" ")),
    );
    this.listeners.render(listeners);
    show($("listeners"), listeners.length > 0);
    show($("no-listeners"), state.listeners.size === 0);
    return {
      title: "Forwards",
      found: forwards.length + listeners.length,
      of: state.forwards.size + state.listeners.size,
    };
  }
}

function writeForward(fields, { forward, nowS }) {
  setBadge(fields.state, FORWARD_TONES[forward.state] ?? "none", forward.state);
  setText(fields.pod, forward.pod);
  setText(fields.namespace, forward.namespace);
  setText(fields.age, age(forward.since, nowS));
  setAttr(fields.age, "title", forward.reason);
  setText(fields.protocol, PROTOCOLS[forward.protocol] ?? (forward.protocol || "–"));
  setAttr(fields.protocol, "title", forward.protocol);
  setText(fields.upstreams, count(forward.upstreams));
  setText(fields.streams, count(forward.streams));
  setText(fields.sent, bytes(forward.bytes_sent));
  setText(fields.received, bytes(forward.bytes_received));
  setText(fields.redials, count(forward.redials));
  show(fields.close, isClosable(forward));
  setAttr(fields.close, "aria-label", `Close the forward to ${forward.pod}`);
  const telling = forward.state === "broken" || forward.state === "draining";
  show(fields.problem, telling || Boolean(forward.last_error));
  const error = forward.last_error
    ? `${forward.last_error}${forward.last_error_at ? ` (${age(forward.last_error_at, nowS)} ago)` : ""}`
    : "";
  const isTold = forward.last_error.startsWith(forward.reason); // the error is the reason
  const why = isTold ? [error] : [forward.reason, error];
  setText(fields.error, telling ? why.filter(Boolean).join(" — ") : `Last error: ${error}`);
}

function writeListener(fields, listener) {
  setText(fields.address, listener.address || "not open");
  setText(fields.target, listener.target);
  setText(fields.failure, listener.failure);
  setText(fields.namespace, listener.namespace);
  setText(fields.port, listener.port);
  setAttr(fields.copy, "aria-label", `Copy address ${listener.address}`);
  show(fields.copy, Boolean(listener.address));
  setAttr(fields.close, "aria-label", `Close ${listener.address || listener.target}`);
  const isOfSettings = listener.asked_by === "settings";
  show(fields.close, !isOfSettings);
  show(fields.note, isOfSettings);
}

export class DnsView {
  constructor() {
    this.queries = new Rows($("queries").tBodies[0], "t-query", (fields, query) => {
      setText(fields.at, clock(query.at));
      setText(fields.name, query.name);
      setText(fields.type, query.type);
      setText(fields.code, query.code);
      setAttr(fields.code, "data-tone", query.code === "SERVFAIL" ? "bad" : query.code === "NOERROR" ? null : "warn");
    });
    this.codes = new Rows($("codes").tBodies[0], "t-code", (fields, answer) => {
      setText(fields.type, answer.type);
      setText(fields.code, answer.code);
      setText(fields.count, count(answer.count));
    });
    $("dig-copy").addEventListener("click", () => copy($("dig-copy"), $("dig").textContent));
  }

  render(state, matches) {
    const { dns } = state;
    show($("dns"), dns !== null);
    show($("no-dns"), state.known && dns === null);
    if (dns === null) return { title: "DNS" };
    const answers = dns.answers ?? [];
    setText($("d-answers"), count(answers.reduce((so, answer) => so + answer.count, 0)));
    for (const figure of ["cached", "forwarded", "dropped", "limited"]) setText($(`d-${figure}`), count(dns[figure]));
    this.codes.render(answers.map((answer) => [`${answer.type} ${answer.code}`, answer]));
    const all = dns.queries ?? [];
    const found = all.filter((query) => matches(() => [query.name, query.type, query.code].join(" ")));
    // newest first; a question that comes twice in a moment is two rows
    const seen = new Map();
    this.queries.render(
      [...found]
        .sort((a, b) => b.at - a.at)
        .map((query) => {
          const name = `${query.at} ${query.name} ${query.type}`;
          seen.set(name, (seen.get(name) ?? 0) + 1);
          return [`${name} ${seen.get(name)}`, query];
        }),
    );
    show($("queries"), found.length > 0);
    show($("no-queries"), all.length === 0);
    const [host, port] = splitAddress((dns.addresses ?? [])[0]);
    const zone = state.tunnel.zones?.[0] ?? "cluster.local";
    setText($("dig"), host ? `dig @${host} -p ${port} kubernetes.default.svc.${zone}` : "");
    return {
      title: "DNS",
      lead: dns.addresses?.length ? `Answers on ${dns.addresses.join(", ")}` : "",
      found: found.length,
      of: all.length,
    };
  }
}

function splitAddress(address) {
  const found = /^\[?(.*?)\]?:(\d+)$/.exec(address ?? "");
  return found ? [found[1], found[2]] : ["", ""];
}

export class EventsView {
  constructor() {
    this.rows = new Rows($("events"), "t-event", writeEvent, (fields) => {
      fields.copy.addEventListener("click", () => copy(fields.copy, fields.command.textContent));
    });
  }

  render(state, matches) {
    const found = state.events.filter((event) =>
      matches(() => [event.text, event.pod, event.service?.service, event.service?.namespace].join(" ")),
    );
    this.rows.render(found.slice(0, EVENTS_SHOWN).map((event) => [event.key, event]));
    show($("no-events"), state.known && state.events.length === 0);
    return { title: "Events", found: found.length, of: state.events.length };
  }
}

function writeEvent(fields, event) {
  const [tone, word] = LEVELS[event.level] ?? LEVELS.info;
  setBadge(fields.level, tone, word);
  setText(fields.at, clock(event.at));
  setAttr(fields.at, "datetime", new Date(event.at * 1000).toISOString());
  show(fields.link, Boolean(event.service));
  if (event.service) {
    setText(fields.link, event.service.service);
    setAttr(fields.link, "href", serviceHash(event.service));
  }
  setText(fields.text, event.text);
  setText(fields.command, event.command);
  setAttr(fields.copy, "title", event.command);
  show(fields.remedy, Boolean(event.command));
}
