// Takes all mail on 127.0.0.1 and throws it away: node server.js PORT
'use strict';
const { SMTPServer } = require('smtp-server');

const server = new SMTPServer({
    authOptional: true,
    disabledCommands: ['AUTH', 'STARTTLS'],
    disableReverseLookup: true,
    onData(stream, session, done) {
        stream.on('end', done);
        stream.resume();
    },
});
server.on('error', (err) => console.error(err.message));
server.listen({ port: Number(process.argv[2]), host: '127.0.0.1', backlog: 4096 });
