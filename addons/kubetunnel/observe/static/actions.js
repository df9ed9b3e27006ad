// What a user can do from the page: the API's unsafe methods with the tunnel's token, copying, and how either ended,
// as text.

import { $, setText, show } from "/dashboard/dom.js";
import { plural } from "/dashboard/format.js";

const TOKEN = "kube-tunnel-token";
const TIMEOUT_MS = 20_000; // a listener waits for the cluster

class Refused extends Error {
  constructor(text, command = null, status = 0) {
    super(text);
    this.command = command;
    this.status = status;
  }
}

// The token comes in the address' fragment, which no request carries; it leaves address bar and history at once.
export function takeToken() {
  const found = /^#token=(.+)$/.exec(location.hash);
  if (!found) return;
  sessionStorage.setItem(TOKEN, found[1]);
  history.replaceState(null, "", location.pathname + location.search);
}

async function send(method, path, body) {
  let response;
  try {
    response = await fetch(`/api/v1/${path}`, {
      method,
      headers: { "Content-Type": "application/json", "X-Kube-Tunnel-Token": sessionStorage.getItem(TOKEN) ?? "" },
      body: body === undefined ? undefined : JSON.stringify(body),
      signal: AbortSignal.timeout(TIMEOUT_MS),
      cache: "no-store",
    });
  } catch (error) {
    throw new Refused(
      error.name === "TimeoutError"
        ? `The tunnel did not answer within ${TIMEOUT_MS / 1000} s.`
        : "The tunnel does not answer. Is it running?",
    );
  }
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) {
    throw new Refused(
      answer.detail ?? answer.title ?? `The tunnel answered ${response.status}.`,
      answer.command,
      response.status,
    );
  }
  return answer;
}

// Does what a button says, once at a time, asks for the token where it is missing, and tells how it ended.
// told(answer) -> the sentence for success, or [sentence, text to copy, tone].
export async function act(button, doing, method, path, body, told) {
  if (button.getAttribute("aria-busy") === "true") return;
  button.setAttribute("aria-busy", "true");
  try {
    if (!sessionStorage.getItem(TOKEN) && !(await askToken("Looking needs none; changing something does."))) return;
    let answer;
    try {
      answer = await send(method, path, body);
    } catch (error) {
      if (!(error instanceof Refused) || (error.status !== 401 && error.status !== 403)) throw error;
      if (!(await askToken(error.message))) throw error;
      answer = await send(method, path, body);
    }
    const [text, copyable, tone] = [told(answer)].flat();
    tell(text, copyable, tone);
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    tell(`${doing} failed. ${error.message}`, error.command, "bad");
  } finally {
    button.removeAttribute("aria-busy");
  }
}

// -> whether a token was given
function askToken(why) {
  const dialog = $("token-dialog");
  setText($("token-why"), why);
  $("token").value = "";
  dialog.returnValue = "cancel";
  dialog.showModal();
  $("token").focus();
  return new Promise((resolve) => {
    dialog.addEventListener(
      "close",
      () => {
        const typed = $("token").value.trim();
        const token = /#token=(.+)$/.exec(typed)?.[1] ?? typed;
        $("token").value = "";
        if (dialog.returnValue !== "ok" || !token) return resolve(false);
        sessionStorage.setItem(TOKEN, token);
        resolve(true);
      },
      { once: true },
    );
  });
}

export function tell(text, command = null, tone = "good") {
  $("notice").dataset.tone = tone;
  setText($("notice-text"), text);
  setText($("notice-command"), command);
  show($("notice-remedy"), Boolean(command));
  show($("notice-body"), true);
}

// Copies and says so on the button; where the browser refuses, the text is selected for the user's own keys.
export async function copy(button, text) {
  const copied = await write(text);
  if (!copied) return tell("The browser does not let this page copy. Here is the line:", text, "warn");
  button.dataset.label ??= button.textContent;
  setText(button, "Copied");
  setText($("announce"), `Copied: ${text}`);
  clearTimeout(Number(button.dataset.timer));
  button.dataset.timer = setTimeout(() => setText(button, button.dataset.label), 1_500);
}

async function write(text) {
  // navigator.clipboard is there in secure contexts only (HTTPS, localhost), and the page may be at 10.8.0.2
  if (navigator.clipboard) {
    return navigator.clipboard.writeText(text).then(
      () => true,
      () => false,
    );
  }
  const area = document.createElement("textarea");
  area.value = text;
  area.className = "heard";
  const focused = document.activeElement;
  document.body.append(area);
  area.select();
  const copied = document.execCommand("copy");
  area.remove();
  focused?.focus();
  return copied;
}

export function wireActions() {
  $("notice-close").addEventListener("click", () => show($("notice-body"), false));
  $("notice-copy").addEventListener("click", (event) => copy(event.currentTarget, $("notice-command").textContent));
  $("token-cancel").addEventListener("click", () => $("token-dialog").close("cancel"));
}

// The local port for a port of a service. local: a number, or null for the same or a free one.
export function openListener(button, service, port, local = null) {
  const target = `svc/${service.service}`;
  const pair = local === null ? String(port) : `${local}:${port}`;
  return act(
    button,
    `Forwarding ${target}`,
    "POST",
    "listeners",
    { target, namespace: service.namespace, zone: service.zone, ports: [pair] },
    (answer) => {
      const [listener] = answer.listeners ?? [answer];
      return [`Port ${port} of ${service.service} is now on ${listener.address}.`, listener.address];
    },
  );
}

// Nothing is cut by it: open streams come to their end, and the next request opens a forward anew.
export function closeForward(button, { zone, namespace, pod }) {
  return act(button, "Closing the forward", "POST", "forwards/close", { zone, namespace, pod }, ({ streams }) =>
    streams
      ? `The forward to ${pod} closes when its ${plural(streams, "open stream")} ${streams === 1 ? "ends" : "end"}.`
      : `The forward to ${pod} is closed.`,
  );
}

export function closeListener(button, listener) {
  return act(
    button,
    "Closing the local port",
    "DELETE",
    `listeners/${encodeURIComponent(listener.id)}`,
    undefined,
    () => `${listener.address || listener.target} is closed.`,
  );
}

export function refresh(button) {
  return act(button, "Refreshing", "POST", "refresh", {}, ({ services, failed }) => {
    if (!failed?.length) return `${plural(services, "service")} read anew from the cluster.`;
    const [why, command] = failed[0].split(" See: "); // as the log has it
    return [`${failed.length} of ${plural(services, "service")} could not be read. ${why}`, command, "bad"];
  });
}
