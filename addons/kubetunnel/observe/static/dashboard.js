// The dashboard: one page over the tunnel's event stream. It asks for nothing else unless a button is pressed, and
// everything that it shows came from there. The address' fragment says which view is on: #/, #/forwards, #/dns,
// #/events, #/service/ZONE/NAMESPACE/SERVICE.

import { copy, refresh, takeToken, wireActions } from "/dashboard/actions.js";
import { $, setAttr, setText, show } from "/dashboard/dom.js";
import { Feed, State } from "/dashboard/feed.js";
import { clock, count, firstRequest } from "/dashboard/format.js";
import { DnsView, EventsView, ForwardsView } from "/dashboard/lists.js";
import { ServiceView } from "/dashboard/service.js";
import { ServicesView } from "/dashboard/services.js";

const REDRAW_MS = 200; // a burst of changes is drawn once
const THEMES = ["auto", "light", "dark"];

const state = new State();
const feed = new Feed("/api/v1/events", state, changed, linkChanged);
let drawing = null;
let paused = false;
let told = null; // the headline that was shown last
let route = { view: "services" };

const views = {
  services: new ServicesView(changed),
  service: new ServiceView(),
  forwards: new ForwardsView(),
  dns: new DnsView(),
  events: new EventsView(),
};

function changed() {
  drawing ??= setTimeout(() => {
    drawing = null;
    if (!paused) draw();
  }, REDRAW_MS);
}

function matcher() {
  const words = $("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  return (text) => words.length === 0 || words.every((word) => text().toLowerCase().includes(word));
}

function draw() {
  if (!state.known) return;
  const nowS = Date.now() / 1000;
  drawAlive(state.alive);
  const matches = matcher();
  const services = views.services.render(state, matches, nowS);
  const events = views.events.render(state, matches);
  const shown =
    { services: () => services, events: () => events }[route.view]?.() ??
    (route.view === "service"
      ? views.service.render(state, route.key, nowS)
      : views[route.view].render(state, matches, nowS));
  setText($("title"), shown.title);
  setText($("lead"), shown.lead);
  show($("lead"), Boolean(shown.lead));
  setText($("found"), $("filter").value.trim() && shown.of ? `${count(shown.found)} of ${count(shown.of)}` : "");
  show($("sieve"), shown.of > 0);
  show($("refresh"), route.view === "services");
  setText(document.querySelector("[data-count=services]"), count(state.services.size));
  setText(document.querySelector("[data-count=forwards]"), count(state.forwards.size + state.listeners.size));
  const { version, context } = state.tunnel;
  setText($("cluster"), [context, version && `v${version}`].filter(Boolean).join(", "));
  setText($("first-request"), firstRequest(state.tunnel));
  const failing = services.counts.failing ? `(${services.counts.failing}) ` : "";
  document.title = `${failing}${route.view === "services" ? "" : `${shown.title} · `}kube-tunnel`;
  // the first one is read with the page
  if (told !== null && services.title !== told) setText($("announce"), services.title);
  told = services.title;
}

// Above all views: where the cluster is away, that is what is wrong with every service.
function drawAlive({ status, detail, command }) {
  setText($("away-text"), status === "unreachable" ? "Requests cannot reach the cluster." : "");
  setText($("away-detail"), detail);
  setText($("away-command"), command);
  show($("away-remedy"), Boolean(command));
  show($("away"), status !== "ok");
}

function linkChanged() {
  const lost = feed.lostSince !== null;
  document.body.dataset.feed = lost ? "lost" : feed.link;
  setText($("feed-text"), lost ? "Disconnected" : paused ? "Paused" : feed.link === "live" ? "Live" : "Connecting");
  if (lost) {
    setText($("lost-text"), `Disconnected since ${clock(feed.lostSince / 1000)}.`);
    setText(
      $("lost-next"),
      state.known
        ? "What you see is from then. The page goes on by itself when the tunnel is back."
        : "Is the tunnel running?",
    );
  }
  show($("lost"), lost);
}

function followHash() {
  takeToken();
  const [, view = "", ...rest] = location.hash.split("/");
  const service = rest.map(safelyDecoded);
  const before = route;
  if (view === "service" && service.length === 3) route = { view, key: service.join("/") };
  else route = { view: ["forwards", "dns", "events"].includes(view) ? view : "services" };
  document.body.dataset.view = route.view;
  for (const part of document.querySelectorAll("[data-for]"))
    show(part, part.dataset.for.split(" ").includes(route.view));
  for (const link of document.querySelectorAll("[data-nav]"))
    setAttr(link, "aria-current", link.dataset.nav === route.view ? "page" : null);
  if (state.known && (before.view !== route.view || before.key !== route.key)) {
    draw();
    scrollTo(0, 0);
    $("title").focus({ preventScroll: true });
  }
}

function safelyDecoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part; // typed by hand
  }
}

function setTheme(theme) {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  setText($("theme"), `Theme: ${theme}`);
  localStorage.setItem("kube-tunnel-theme", theme);
}

function wire() {
  setTheme(THEMES.find((theme) => theme === localStorage.getItem("kube-tunnel-theme")) ?? "auto");
  $("theme").addEventListener("click", () =>
    setTheme(THEMES[(THEMES.indexOf(localStorage.getItem("kube-tunnel-theme")) + 1) % THEMES.length]),
  );
  $("pause").addEventListener("click", () => {
    paused = !paused;
    setAttr($("pause"), "aria-pressed", paused);
    linkChanged();
    if (!paused) draw();
  });
  $("filter").addEventListener("input", draw);
  $("refresh").addEventListener("click", () => refresh($("refresh")));
  $("away-copy").addEventListener("click", () => copy($("away-copy"), $("away-command").textContent));
  $("reconnect").addEventListener("click", () => feed.hurry());
  $("first-request-copy").addEventListener("click", () =>
    copy($("first-request-copy"), $("first-request").textContent),
  );
  addEventListener("hashchange", followHash);
  addEventListener("online", () => feed.hurry());
  document.addEventListener("visibilitychange", () => document.hidden || feed.hurry());
  document.addEventListener("keydown", (event) => {
    const typing = event.target.matches("input, textarea");
    if (
      event.key !== "/" ||
      typing ||
      event.ctrlKey ||
      event.metaKey ||
      event.altKey ||
      document.querySelector("dialog[open]")
    )
      return;
    event.preventDefault();
    $("filter").focus();
  });
  setInterval(changed, 1_000); // ages go on without news
}

wire();
wireActions();
followHash();
feed.connect();
