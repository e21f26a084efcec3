-- depends: 0002_brands
-- Accounts, accounts of outside issuers, sessions of the web pages, and limits of log-in attempts. These tables have an
-- owner of their own and are reached only through functions.
set role onbrand_identity;

-- An account of an outside issuer may have no password and no address. An address is verified only if email_verified_at
-- is set; until then it is what a user typed.
create table identity.users (
  id uuid primary key default gen_random_uuid(),
  email text unique check (email = lower(email) and char_length(email) between 3 and 254),
  password_hash text,
  created_at timestamptz not null default clock_timestamp(),
  email_verified_at timestamptz,
  check (email_verified_at is null or email is not null)
);
alter table identity.users enable row level security;
alter table identity.users force row level security;
create policy function_owner on identity.users to onbrand_identity using (true) with check (true);

create table identity.subjects (
  issuer text not null check (char_length(issuer) between 1 and 500),
  subject text not null check (char_length(subject) between 1 and 255),
  user_id uuid not null references identity.users,
  created_at timestamptz not null default clock_timestamp(),
  primary key (issuer, subject)
);
create index subjects_by_user on identity.subjects (user_id);
alter table identity.subjects enable row level security;
alter table identity.subjects force row level security;
create policy function_owner on identity.subjects to onbrand_identity using (true) with check (true);

create table identity.sessions (
  id uuid primary key default gen_random_uuid(),
  user_id uuid not null references identity.users,
  hash text not null unique check (hash ~ '^[0-9a-f]{64}$'),
  created_at timestamptz not null default clock_timestamp(),
  last_seen_at timestamptz not null default clock_timestamp(),
  idle interval not null check (idle > interval '0'),
  expires_at timestamptz not null,
  ended_at timestamptz
);
create index sessions_by_user on identity.sessions (user_id, created_at);
alter table identity.sessions enable row level security;
alter table identity.sessions force row level security;
create policy function_owner on identity.sessions to onbrand_identity, onbrand_definer using (true) with check (true);
grant select (id, user_id, idle, last_seen_at, expires_at, ended_at) on identity.sessions to onbrand_definer;

-- Limits of log-in attempts (GCRA): one bucket per client address, per account's address, and per pair of both. The key
-- is a SHA-256, so the table contains no address of a person. `due` is the time when the bucket is full again; after
-- it, the row has no meaning.
create table identity.attempts (
  key text primary key check (key ~ '^[0-9a-f]{64}$'),
  due timestamptz not null
);
create index attempts_by_due on identity.attempts (due);
alter table identity.attempts enable row level security;
alter table identity.attempts force row level security;
create policy function_owner on identity.attempts to onbrand_identity using (true) with check (true);

-- True if the credential is neither a key, nor bound to one brand, nor limited to some scopes.
create function private.is_unrestricted() returns boolean
language sql stable security definer set search_path = '' as $$
  select private.uid() is not null
    and num_nonnulls(private.ctx('bound_to'), private.ctx('key_id'), private.ctx('scopes')) = 0
$$;

create function private.sign_up(email text, password_hash text) returns table (id uuid, created_at timestamptz)
language plpgsql volatile security definer set search_path = '' as $$
begin
  perform private.must_be_requested('sign_up', lower(sign_up.email));
  return query insert into identity.users as u (email, password_hash)
    values (lower(sign_up.email), sign_up.password_hash) returning u.id, u.created_at;
end $$;

-- The hash of a password, only for the one address that the platform signed. The web login alone cannot read it.
create function private.find_login(email text) returns table (id uuid, password_hash text)
language plpgsql stable security definer set search_path = '' as $$
begin
  perform private.must_be_requested('find_login', lower(find_login.email));
  return query select u.id, u.password_hash from identity.users u where u.email = lower(find_login.email);
end $$;

create function private.me() returns table (id uuid, email text, email_verified boolean, created_at timestamptz)
language sql stable security definer set search_path = '' as $$
  select u.id, u.email, u.email_verified_at is not null, u.created_at
  from identity.users u where u.id = private.uid()
$$;

create function private.my_email() returns text
language sql stable security definer set search_path = '' as $$
  select u.email from identity.users u where u.id = private.uid()
$$;

create function private.my_verified_email() returns text
language sql stable security definer set search_path = '' as $$
  select u.email from identity.users u where u.id = private.uid() and u.email_verified_at is not null
$$;

-- The address of any account. Only triggers use it; no login may execute it.
create function private.email_of(user_id uuid) returns text
language sql stable security definer set search_path = '' as $$
  select u.email from identity.users u where u.id = email_of.user_id
$$;

-- Addresses of the members that the caller sees: the caller's own; for an admin, those of all members.
create function private.member_emails(brand text) returns table (user_id uuid, email text)
language sql stable security definer set search_path = '' as $$
  select u.id, u.email from identity.users u join app.brand_users bu on bu.user_id = u.id where bu.brand_id = brand
$$;

-- The account of a subject of an outside issuer; it is made at the first log-in. `email` is an address that the issuer
-- has verified. A new account gets it. An existing account without an address gets it if no other account has it. An
-- existing account with the same unverified address becomes verified. A new account with the address of another account
-- is refused (23505): the two may have different owners, so only link_subject joins them.
create function private.external_user(issuer text, subject text, email text) returns uuid
language plpgsql volatile security definer set search_path = '' as $$
declare account_id uuid;
begin
  perform private.must_be_requested('external_user', issuer, subject, email);
  select s.user_id into account_id from identity.subjects s
    where s.issuer = external_user.issuer and s.subject = external_user.subject;
  if account_id is not null then
    update identity.users u set email = lower(external_user.email), email_verified_at = clock_timestamp()
      where external_user.email is not null and u.id = account_id and u.email_verified_at is null
        and (u.email = lower(external_user.email) or (u.email is null
          and not exists (select 1 from identity.users o where o.email = lower(external_user.email))));
    return account_id;
  end if;
  begin
    insert into identity.users as u (email, email_verified_at)
      values (lower(external_user.email), case when external_user.email is not null then clock_timestamp() end)
      returning u.id into account_id;
    insert into identity.subjects (issuer, subject, user_id)
      values (external_user.issuer, external_user.subject, account_id);
  exception when unique_violation then
    select s.user_id into account_id from identity.subjects s
      where s.issuer = external_user.issuer and s.subject = external_user.subject;
    if account_id is null then raise; end if;
  end;
  return account_id;
end $$;

-- Link a subject to the caller's account. If the issuer verified the account's own address, the address becomes
-- verified.
create function private.link_subject(issuer text, subject text, email text default null) returns void
language plpgsql volatile security definer set search_path = '' as $$
begin
  perform private.must_be_requested('link_subject', issuer, subject, email);
  if not private.is_unrestricted() then
    raise exception 'no link with this credential' using errcode = '42501';
  end if;
  insert into identity.subjects (issuer, subject, user_id)
    values (link_subject.issuer, link_subject.subject, private.uid());
  update identity.users u set email_verified_at = clock_timestamp()
    where u.id = private.uid() and u.email = lower(link_subject.email) and u.email_verified_at is null;
end $$;

create function private.has_valid_session(session_id uuid, user_id uuid) returns boolean
language plpgsql stable security definer set search_path = '' as $$
begin
  return exists (select 1 from identity.sessions s where s.id = has_valid_session.session_id
    and s.user_id = has_valid_session.user_id and s.ended_at is null
    and least(s.expires_at, s.last_seen_at + s.idle) > clock_timestamp());
end $$;

-- The session with this hash. The call sets last_seen_at, at most once a minute.
create function private.find_session(hash text) returns table (id uuid, user_id uuid, expires_at timestamptz)
language sql volatile security definer set search_path = '' as $$
  update identity.sessions s set last_seen_at = statement_timestamp()
  where private.claims() is not null and s.hash = find_session.hash and s.ended_at is null
    and least(s.expires_at, s.last_seen_at + s.idle) > clock_timestamp()
    and s.last_seen_at < statement_timestamp() - least(interval '1 minute', s.idle / 4);
  select s.id, s.user_id, s.expires_at from identity.sessions s
  where private.claims() is not null and s.hash = find_session.hash and s.ended_at is null
    and least(s.expires_at, s.last_seen_at + s.idle) > clock_timestamp()
$$;

-- A session reaches everything that its user reaches, so a narrower credential must not open one.
create function private.open_session(hash text, idle interval, life interval)
returns table (id uuid, expires_at timestamptz)
language plpgsql volatile security definer set search_path = '' as $$
begin
  perform private.must_be_requested('open_session', hash);
  if not private.is_unrestricted() or private.ctx('session_id') is not null
     or open_session.life > interval '31 days' then
    raise exception 'no session for this credential' using errcode = '42501';
  end if;
  delete from identity.sessions s where s.user_id = private.uid() and s.expires_at < clock_timestamp();
  return query insert into identity.sessions as s (user_id, hash, idle, expires_at)
    values (private.uid(), open_session.hash, open_session.idle, clock_timestamp() + open_session.life)
    returning s.id, s.expires_at;
end $$;

create function private.my_sessions()
returns table (id uuid, created_at timestamptz, last_seen_at timestamptz, expires_at timestamptz)
language sql stable security definer set search_path = '' as $$
  select s.id, s.created_at, s.last_seen_at, s.expires_at from identity.sessions s
  where private.is_unrestricted() and s.user_id = private.uid() and s.ended_at is null
    and least(s.expires_at, s.last_seen_at + s.idle) > clock_timestamp()
  order by s.created_at desc, s.id
$$;

-- End one of the caller's sessions, or all of them (null). Returns how many ended.
create function private.end_sessions(session_id uuid) returns integer
language sql volatile security definer set search_path = '' as $$
  with ended as (
    update identity.sessions s set ended_at = statement_timestamp()
    where private.is_unrestricted() and s.user_id = private.uid() and s.ended_at is null
      and (end_sessions.session_id is null or s.id = end_sessions.session_id)
    returning 1)
  select count(*)::integer from ended
$$;

-- Take one attempt from each of these buckets, each of max_attempts in `seconds`, or take none. Returns how many
-- seconds to wait; 0 if the attempts were taken. A refused attempt is not counted, so waiting always helps. All
-- replicas call this function; row locks serialize concurrent attempts.
create function private.take_attempt(keys text[], max_attempts integer[], seconds integer[]) returns double precision
language plpgsql volatile security definer set search_path = '' as $$
declare
  at timestamptz;
  until timestamptz;
  dues timestamptz[] := '{}';
  step interval;
  wait double precision := 0;
begin
  perform private.must_be_signed();
  if cardinality(keys) not between 1 and 4 or cardinality(max_attempts) <> cardinality(keys)
      or cardinality(seconds) <> cardinality(keys) or 1 > any (max_attempts) or 1 > any (seconds)
      or 86400 < any (seconds) then
    raise exception 'a bucket has a key, a number and a time' using errcode = '22023';
  end if;
  for n in 1 .. cardinality(keys) loop
    insert into identity.attempts as a (key, due) values (keys[n], clock_timestamp())
      on conflict (key) do update set due = a.due returning a.due into until;
    at := clock_timestamp();
    step := make_interval(secs => seconds[n]::double precision / max_attempts[n]);
    until := least(greatest(until, at), at + make_interval(secs => seconds[n]));  -- a bucket is full after its period
    wait := greatest(wait, extract(epoch from until - at - (max_attempts[n] - 1) * step));
    dues := dues || (until + step);
  end loop;
  if wait > 0 then return wait; end if;
  for n in 1 .. cardinality(keys) loop
    update identity.attempts a set due = dues[n] where a.key = keys[n];
  end loop;
  delete from identity.attempts a where a.key in (
    select b.key from identity.attempts b where b.due < clock_timestamp() order by b.due limit 8
    for update skip locked);
  return 0;
end $$;

-- Return one attempt to each bucket, after the right password.
create function private.give_attempt_back(keys text[], max_attempts integer[], seconds integer[]) returns void
language sql volatile security definer set search_path = '' as $$
  update identity.attempts a set due = a.due - make_interval(secs => b.seconds::double precision / b.max_attempts)
  from (select t.key, t.max_attempts, t.seconds
    from unnest(give_attempt_back.keys, give_attempt_back.max_attempts, give_attempt_back.seconds)
      as t (key, max_attempts, seconds)) b
  where private.claims() is not null and a.key = b.key
$$;

reset role;

grant execute on function private.sign_up(text, text), private.find_login(text), private.find_session(text),
  private.external_user(text, text, text), private.take_attempt(text[], integer[], integer[]),
  private.give_attempt_back(text[], integer[], integer[]) to anon;
grant execute on function private.me(), private.member_emails(text), private.link_subject(text, text, text),
  private.open_session(text, interval, interval), private.my_sessions(), private.end_sessions(uuid) to authenticated;
grant execute on function private.is_unrestricted(), private.my_email(), private.my_verified_email(),
  private.email_of(uuid), private.has_valid_session(uuid, uuid) to onbrand_definer;
