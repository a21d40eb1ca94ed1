'use strict';

// One stream of events for all tabs. A browser opens six connections to a
// server over HTTP/1.1; a stream in each tab would leave none for the seventh.
const ports = new Set();
const newest = new Map();  // last event of each video, for tabs that open later
let source = null;

function tell(message) {
  ports.forEach((port) => port.postMessage(message));
}

function listen() {
  source = new EventSource('/v1/events');
  source.addEventListener('snapshot', (event) => {
    const {ids} = JSON.parse(event.data);
    [...newest.keys()].filter((id) => !ids.includes(id))
      .forEach((id) => newest.delete(id));
    tell({type: 'snapshot', ids});
  });
  source.addEventListener('video', (event) => {
    const video = JSON.parse(event.data);
    newest.set(video.id, video);
    tell({type: 'video', video});
  });
  source.addEventListener('deleted', (event) => {
    const {id} = JSON.parse(event.data);
    newest.delete(id);
    tell({type: 'deleted', id});
  });
  // A lost connection is made again; a refusal closes the stream for good.
  source.addEventListener('error', () => {
    if (source.readyState === EventSource.CLOSED) tell({type: 'closed'});
  });
}

function receive(port, message) {
  if (message === 'leave') {
    ports.delete(port);
    return;
  }
  if (message === 'log in') {  // perhaps as somebody else
    if (source) source.close();
    newest.clear();
  }
  if (!ports.has(port)) {
    ports.add(port);
    port.postMessage({type: 'snapshot', ids: [...newest.keys()]});
    newest.forEach((video) => port.postMessage({type: 'video', video}));
  }
  if (!source || source.readyState === EventSource.CLOSED) listen();
}

self.addEventListener('connect', ({ports: [port]}) => {
  port.addEventListener('message', (event) => receive(port, event.data));
  port.start();
});
